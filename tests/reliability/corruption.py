"""Files of a real run, damaged one at a time; then the commands that read them are run.

What a command then says must be what it said before, or it must say that something is wrong: fall back with
a word on stderr, or end with exit code 2 and an `error:` line. Another answer without a word counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tally import Tally

from localdpo.cli.main import run as run_command

RUN = "r"
ANSWERS = ("--limit", "2", "--max-tokens", "8")
COMPARE = ("compare", RUN, "--json", *ANSWERS)
EVAL = ("eval", RUN, "--json", "--judge", "rules", *ANSWERS)
INSPECT = ("inspect", RUN, "--json", "--limit", "2")
RUNS = ("runs", "--json")
RESUME = ("train", "--resume", "--run", RUN, "--plain")

# Files of the run and of the cache, and the commands that read them.
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "runs/r/checkpoints/step-*/adapters.safetensors": (INSPECT, COMPARE),
    "runs/r/checkpoints/step-*/adapter_config.json": (COMPARE,),
    "runs/r/checkpoints/step-*/optimizer.safetensors": (INSPECT,),
    "runs/r/checkpoints/step-*/state.json": (INSPECT,),
    "runs/r/checkpoints/step-*/manifest.json": (INSPECT, COMPARE),
    "runs/r/answers/*.jsonl": (COMPARE, EVAL),
    "runs/r/eval/verdicts.jsonl": (EVAL,),
    "runs/r/eval/rules.json": (("report", RUN, "--html", "page.html"),),
    "runs/r/pairs/step-*.json": (("watch", RUN, "--once", "--screen", "pairs"),),
    "runs/r/events.jsonl": (RUNS, ("watch", RUN, "--once", "--screen", "live")),
    "runs/r/recipe.yaml": (INSPECT, COMPARE),
    "runs/r/inputs.json": (INSPECT,),
    "cache/tokens/*.arrow": (INSPECT,),
    "sft/adapters.safetensors": (INSPECT, COMPARE),
    "sft/adapter_config.json": (INSPECT, COMPARE),
    "pairs.jsonl": (INSPECT,),
}
COMMANDS = tuple(dict.fromkeys(arguments for group in READERS.values() for arguments in group))


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 16)
    return data[:place] + rng.randbytes(length) + data[place + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zero(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 512)
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def double(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 512)
    return data[: place + length] + data[place:]


def drop(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:place] + data[place + length :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bit,
    flip_bit,
    flip_bit,
    set_bytes,
    truncate,
    zero,
    double,
    drop,
)


@dataclass(frozen=True)
class Said:
    """What a command did: its exit code and its two streams."""

    code: int
    out: str
    errors: str

    @property
    def is_traceback(self) -> bool:
        """Whether a person would see one."""
        return "Traceback" in self.out + self.errors


def command(arguments: Sequence[str]) -> Said:
    """Run a localdpo command in this process, as its console script would."""
    out, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["localdpo", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            run_command()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
    return Said(code if isinstance(code, int) else 1 if code else 0, out.getvalue(), errors.getvalue())


def is_same(said: Said, before: Said) -> bool:
    """Whether a command said what it said before; a figure of time in a frame may differ."""
    clock = re.compile(r"\d+:\d\d(:\d\d)?|\d+(\.\d+)? ?(s|m|min|h|d) (ago|left)")
    return said.code == before.code and clock.sub("", said.out) == clock.sub("", before.out)


def is_told(said: Said, before: Said) -> bool:
    """Whether a command said that something is wrong: on stderr, or in the frame that it shows."""
    if said.code == 2:
        return "error: " in said.errors
    told = said.errors.strip() and said.errors != before.errors
    return said.code == 0 and bool(told or ("damaged" in said.out and "damaged" not in before.out))


@contextlib.contextmanager
def corpus(folder: Path) -> Iterator[Path]:
    """A run of the demo's model with all that commands keep of it; the process is in its folder meanwhile."""
    from localdpo.core.names import resolve

    folder.mkdir(parents=True, exist_ok=True)
    home = Path.cwd()
    os.chdir(folder)
    shutil.copytree(resolve("demo:sft"), "sft")
    shutil.copy(resolve("demo:preferences/train"), "pairs.jsonl")
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)[:24]
    Path("pairs.jsonl").write_text("".join(lines))
    Path("recipe.yaml").write_text(
        "model: demo:model\nadapter: sft\ndata: {train: pairs.jsonl, valid_fraction: 0.3}\n"
        "train: {max_steps: 4, batch_size: 2, learning_rate: 1.0e-4}\n"
        "eval: {every: 2, pairs: 4, samples: 1, max_tokens: 4, prompts: demo:prompts/heldout}\n"
        "save: {every: 2}\n"
    )
    try:
        with mock.patch.dict(os.environ, {"LOCALDPO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}):
            trained = command(["train", "recipe.yaml", "--plain", "--run", RUN])
            assert trained.code == 0, trained
            for arguments in COMMANDS:
                said = command(arguments)
                assert said.code == 0, (arguments, said)
            yield folder
    finally:
        os.chdir(home)


def corrupt(folder: Path, count: int, seed: int = 0) -> Tally:
    """Damage files of a run `count` times, each kind about equally often, and use them."""
    tally = Tally("damaged files")
    rng = random.Random(seed)
    with corpus(folder / "work") as work:
        pristine = folder / "pristine"
        shutil.copytree(work, pristine, symlinks=True)
        before = {arguments: command(arguments) for arguments in COMMANDS}
        kinds = [pattern for pattern in READERS if any(work.glob(pattern))]
        for number in range(count):
            pattern = kinds[number % len(kinds)]
            file = rng.choice(sorted(work.glob(pattern)))
            damage = rng.choice(DAMAGES)
            data = file.read_bytes()
            file.write_bytes(damage(data, rng))
            for arguments in READERS[pattern]:
                said = command(arguments)
                tally.trial(
                    f"{damage.__name__} in {file.relative_to(work)}: {' '.join(arguments)}: {said.code}, "
                    f"{said.errors[-200:]!r}",
                    silent=not (is_same(said, before[arguments]) or is_told(said, before[arguments])),
                    traceback=said.is_traceback,
                )
            restore(pristine, work)
    return tally


def restore(pristine: Path, work: Path) -> None:
    """Make the folder `work` what it was, in place, since the process is in it."""
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(pristine, work, symlinks=True, dirs_exist_ok=True)

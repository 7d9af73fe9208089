"""Rebuild the demo's bundle from a seed: `python -m localdpo.demo.build [--out DIR] [--seed N]`.

Tokenizer, base model, demonstrations, SFT adapter, preference pairs, held-out prompts: nothing comes from
elsewhere. The SFT adapter is trained by the project's own trainer, and the pairs are what
`localdpo prefs build` makes of its answers. Takes about 15 minutes on 2 CPU cores with OpenBLAS.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from localdpo.core.atomic import published_dir, write_text
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError, UserError
from localdpo.core.names import BUNDLE
from localdpo.demo import dataset
from localdpo.demo.dataset import Incident, Row
from localdpo.incidents import gold_answer, sample_facts
from localdpo.model.backend import prepare
from localdpo.out import guard, say_errors
from localdpo.out import say as tell

Say = Callable[[str], None]

SEED = 1  # of the bundle that is shipped
BITS = 4
MODEL_BYTES, ADAPTER_BYTES = 2_000_000, 2_000_000  # more than is needed
TOKENIZER_DOCUMENTS, TOKENIZER_ANSWERS = 4000, 1500
TEMPERATURE = 1.0  # one for both answers: two would teach the model to prefer the colder one
MAX_ANSWER_TOKENS = 80
SFT_SETTINGS: Row = {
    "loss": "sft",
    "train": {"epochs": 5, "batch_size": 16, "learning_rate": 2e-3, "max_length": 256},
    "lora": {"rank": 8, "scale": 10},
}


def build(out: Path, seed: int, say: Say = tell, *, keep_model: bool = False, keep_sft: bool = False) -> None:
    """Make the bundle in `out`. What `keep_...` names has to exist.

    Raises UserError: no space, something to keep that does not exist, an SFT run that failed, or too few
    pairs.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (keep_model or keep_sft):
        make_model(out / "model", seed, say)
    elif not (out / "model" / "config.json").is_file():
        raise UserError(f"--keep-model: {out / 'model'} holds no model; remove the option to make one")
    if keep_sft and not (out / "sft" / "adapters.safetensors").is_file():
        raise UserError(f"--keep-sft: {out / 'sft'} holds no adapter; remove the option to train one")
    incidents = dataset.split_incidents(seed)
    make_demonstrations(out, incidents, seed)
    dataset.write_rows(out / "prompts/heldout.jsonl", map(dataset.prompt_row, incidents["prompts/heldout"]))
    if not keep_sft:
        train_sft(out, seed, say)
    make_preferences(out, incidents, seed, say)


def make_model(folder: Path, seed: int, say: Say) -> None:
    """Train the tokenizer and the base model, quantise it, and publish both as `folder`."""
    from localdpo.demo import pretrain

    rng = random.Random(f"tokenizer {seed}")
    texts = [m["content"] for _ in range(TOKENIZER_DOCUMENTS) for m in dataset.document(rng)]
    texts += [gold_answer(sample_facts(rng)) for _ in range(TOKENIZER_ANSWERS)]
    tokenizer = pretrain.train_tokenizer(texts)
    say(f"tokenizer: {len(tokenizer)} tokens")
    model = pretrain.train_base(tokenizer, pretrain.PretrainOptions(seed=seed), say)
    with published_dir(folder, MODEL_BYTES) as temp:
        pretrain.save_quantised(model, tokenizer, temp, BITS)


def make_demonstrations(out: Path, incidents: dict[str, list[Incident]], seed: int) -> None:
    """Write the demonstrations to train and to evaluate on."""
    rng = random.Random(f"demonstrations {seed}")
    for name in ("demonstrations/train", "demonstrations/valid"):
        rows = [dataset.demonstration_row(incident, rng) for incident in incidents[name]]
        dataset.write_rows(out / f"{name}.jsonl", rows)


def train_sft(out: Path, seed: int, say: Say) -> None:
    """Train the SFT adapter with the project's own worker, in a temporary run folder.

    Raises UserError: the worker failed; what it wrote is shown.
    """
    from localdpo.recipe.load import dump_recipe
    from localdpo.recipe.schema import Recipe

    settings = {
        **SFT_SETTINGS,
        "model": str(out / "model"),
        "data": {name: str(out / f"demonstrations/{name}.jsonl") for name in ("train", "valid")},
        "train": {**SFT_SETTINGS["train"], "seed": seed},
        "eval": {"samples": 0, "every": 100},
    }
    say("SFT: training")
    with tempfile.TemporaryDirectory(prefix="localdpo-demo-") as temp:
        run = Path(temp) / "sft"
        run.mkdir()
        write_text(run / "recipe.yaml", dump_recipe(Recipe.model_validate(settings)))
        done = subprocess.run(
            [sys.executable, "-m", "localdpo.train", str(run)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise UserError(f"the SFT run failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
        publish_adapter(run / "checkpoints" / "LATEST", out / "sft")


def publish_adapter(checkpoint: Path, folder: Path) -> None:
    """Copy the adapter of a checkpoint into `folder`, without the training state."""
    with published_dir(folder, ADAPTER_BYTES) as temp:
        shutil.copyfile(checkpoint / "adapters.safetensors", temp / "adapters.safetensors")
        config = json.loads((checkpoint / "adapter_config.json").read_text())
        config["model"] = "demo:model"
        (temp / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_preferences(out: Path, incidents: dict[str, list[Incident]], seed: int, say: Say) -> None:
    """`prefs build` with the SFT model and the rules: two answers to each prompt, the better one chosen.

    Raises UserError: fewer pairs than are wanted.
    """
    from localdpo.prefs.build import TRAIN, run_build
    from localdpo.prefs.build_plan import BuildOptions, plan_build
    from localdpo.prefs.candidates import CandidateSource

    for number, (name, kept) in enumerate(dataset.KEPT.items()):
        with tempfile.TemporaryDirectory(prefix="localdpo-demo-") as temp:
            prompts = Path(temp) / "prompts.jsonl"
            dataset.write_rows(prompts, map(dataset.prompt_row, incidents[name]))
            options = BuildOptions(
                prompts=str(prompts),
                out=Path(temp) / "pairs",
                source=CandidateSource(str(out / "model"), str(out / "sft")),
                temperatures=(TEMPERATURE,),
                max_tokens=MAX_ANSWER_TOKENS,
                seed=seed + number,
                judge="rules",
                valid_count=0,
                keep=kept,
            )
            pairs = run_build(plan_build(options))["pairs"]
            count = pairs["kept"] + pairs["beyond_keep"]
            say(f"{name}: {count} pairs from {len(incidents[name])} prompts")
            if count < kept:
                raise UserError(
                    f"{name}: {kept} pairs wanted, only {count} of {len(incidents[name])} prompts made one"
                )
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / f"{name}.jsonl", (options.out / TRAIN).read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m localdpo.demo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLE, help="folder to fill (default: the bundle)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep-model", action="store_true", help="use the existing base model")
    parser.add_argument(
        "--keep-sft",
        action="store_true",
        help="use the existing base model and SFT adapter",
    )
    guard()
    options = parser.parse_args(arguments)
    prepare()
    try:
        keep = {"keep_model": options.keep_model, "keep_sft": options.keep_sft}
        build(options.out.resolve(), options.seed, **keep)
    except LocalDPOError as error:
        say_errors(error)
        return USER_ERROR_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Damaged and hostile copies of good files, from a seed, and the readers that have to survive them.

    tried(READERS["rows"], folder, 20_000, seed=0)

Every reader takes a file's bytes, reads them as a command does, and lets nothing out but LocalDPOError. The
suite tries some hundred of each; a longer run calls `tried` with larger counts.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from localdpo.core.errors import LocalDPOError, UserError, UserErrors
from localdpo.judging.base import Judge, Question
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Verdict

DEEP = 100_000
SLOWEST = 5.0  # seconds of computing for one file; a quadratic reader takes minutes

# What stands in files that other programs, and people, write.
PIECES: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\x1b[2J",
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"0", b"1e5", b"9" * 400, b"9" * 5000, b"0.1.2",
    b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"[null]", b'[[{"a": [null]}]]', b'{"": null}', b"3.5",
    b"[" * DEEP, b'{"a":' * 2000, b"\n", b"\r\n", b"\t", b"&a [*a, *a]", b"!!python/object:os.system x",
    b"<<: *x", b"---\n", b"%YAML 9.9\n", b"{{ x }}", b"{% for i in range(9) %}", b"'", b'"', b":", b",", b"#",
)  # fmt: skip
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf"), "", "x", "\x00", "\ud800", "\x1b[2J", [], {},
    [None], [[]], ["x", 1], {"x": None}, {"content": "x"}, "x" * 5000, ["x"] * 300,
)  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes: cut, doubled, moved, overwritten, with PIECES put in."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((0, 1, 2, 8, 64, len(content))))
        match rng.randrange(6):
            case 0:
                content = content[:start]
            case 1:
                content = content[:start] + content[end:]
            case 2:
                content = content[:end] + content[start:]
            case 3:
                content = content[:start] + bytes([rng.randrange(256)]) + content[start + 1 :]
            case _:
                content = content[:start] + rng.choice(PIECES) + content[end:]
    return content


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """`content`, lines of JSON or one document, with values of other types at one to three places."""
    text = content.decode()
    is_lines = text.count("\n") > 1 and not text.startswith(("{\n", "["))
    documents = [json.loads(line) for line in text.splitlines()] if is_lines else [json.loads(text)]
    for _ in range(rng.randint(1, 3)):
        _change(rng.choice(documents), rng)
    ascii_only = rng.random() < 0.9
    return b"\n".join(json.dumps(one, ensure_ascii=ascii_only).encode(errors="replace") for one in documents)


def _change(value: object, rng: random.Random) -> None:
    """Put another value, or none, at a place somewhere inside `value`."""
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        inner = value[key]  # type: ignore[call-overload, index]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            value = inner
            continue
        if rng.random() < 0.2:
            del value[key]  # type: ignore[arg-type]
        else:
            value[key] = deepcopy(rng.choice(VALUES))  # type: ignore[call-overload, index]
        return


@dataclass(frozen=True)
class Reader:
    """One kind of file: a good one, its name, and what reads it in a folder of its own."""

    name: str
    good: Callable[[], bytes]
    read: Callable[[Path], object]
    is_json: bool = False
    beside: Callable[[Path], None] = lambda folder: None


def tried(reader: Reader, folder: Path, count: int, seed: int = 0) -> Mapping[str, int]:
    """How many of `count` mutations were read and how many refused.

    Raises AssertionError with the mutation's seed where anything but LocalDPOError came out, or the reading
    took longer than SLOWEST.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader.beside(folder)
    good, path = reader.good(), folder / reader.name
    counts, lines = {"read": 0, "refused": 0}, list[str]()
    path.write_bytes(good)
    reader.read(path)
    for number in range(count):
        rng = random.Random(f"{reader.name} {seed} {number}")
        in_values = reader.is_json and rng.random() < 0.6
        path.write_bytes(mutate_json(good, rng) if in_values else mutate(good, rng))
        start = time.process_time()
        try:
            reader.read(path)
        except LocalDPOError as error:
            counts["refused"] += 1
            lines += error.lines
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | MemoryError):
                raise
            kept = folder / f"failed-{seed}-{number}-{reader.name}"
            shutil.copy(path, kept)
            raise AssertionError(f"{kept}: {type(error).__name__}: {str(error)[:200]}") from error
        else:
            counts["read"] += 1
        assert time.process_time() - start < SLOWEST, (reader.name, seed, number)
    assert all(line and "\n" not in line for line in lines)
    return counts


# --- the readers -------------------------------------------------------------------------------------------


def _read_recipe(path: Path) -> object:
    from localdpo.recipe.load import dump_recipe, load_recipe

    return dump_recipe(load_recipe(path))


def _read_rows(path: Path) -> object:
    from localdpo.data.rows import source_format
    from localdpo.data.sources import open_source

    source = open_source(str(path))
    source_format(source, "pairs")
    return [row.record for row in source.rows()]


def _read_prompts(path: Path) -> object:
    from localdpo.data.prompts import read_prompt_rows

    return read_prompt_rows(str(path))


def _read_adapter(path: Path) -> object:
    from localdpo.model import lora

    return lora.read_config(path.parent)


def _read_weights(path: Path) -> object:
    from localdpo.model.arrays import load_arrays

    return load_arrays(path)


def _read_model(path: Path) -> object:
    from localdpo.model.load import build_model

    return build_model(str(path.parent))


def _read_tokenizer(path: Path) -> object:
    from localdpo.data.encode import encode_prompt
    from localdpo.model.load import load_tokenizer

    return encode_prompt(load_tokenizer(str(path.parent))._tokenizer, "Why?", "auto")


def _read_log(path: Path) -> object:
    from localdpo.records.events import effective, read_events
    from localdpo.records.rundir import RunDir
    from localdpo.records.runs import summarise
    from localdpo.records.wording import closing_lines, format_event, format_headline

    events = effective(read_events(path))
    lines = [form(event, 100) or "" for event in events for form in (format_event, format_headline)]
    lines += closing_lines(RunDir(path.parent), events)
    "\n".join(lines).encode()
    return summarise(RunDir(path.parent), events, running=False)


def _read_verdicts(path: Path) -> object:
    from localdpo.judging.run import Journal

    with Journal(path, sync=False) as journal:
        return journal.get("")


def _read_votes(path: Path) -> object:
    from localdpo.records.votes import Votes

    return Votes(path)


def _read_answers(path: Path) -> object:
    from localdpo.pages import compare_values
    from localdpo.records.answers import read_answers

    return compare_values(read_answers(path))


def _read_checks(path: Path) -> object:
    from localdpo.heuristics.checks import load_checks

    return [check.score("why?", "so", {}) for check in load_checks(path)]


def _read_rubric(path: Path) -> object:
    from localdpo.judging.rubric import load_rubric

    return load_rubric(str(path))


def _read_labels(path: Path) -> object:
    from localdpo.prefs.label import open_labelling

    return open_labelling(str(path.parent / "rows.jsonl"), path).labels


def _read_state(path: Path) -> object:
    from localdpo.train.checkpoint import read_state

    return read_state(path.parent)


def _read_manifest(path: Path) -> object:
    from localdpo.core.atomic import verified_digests

    _, problems = verified_digests(path.parent)
    if problems:
        raise UserErrors([UserError(problem) for problem in problems])
    return None


def _read_evaluation(path: Path) -> object:
    """As the report and the judge screen do."""
    from localdpo.evals.table import read_record, text
    from localdpo.records.evaluations import read_evaluation

    read_evaluation(path)
    return text(read_record(path))


def _read_inputs(path: Path) -> object:
    from localdpo.train import inputs

    return inputs.recorded(RunDir(path.parent), lambda note: None)


def _read_batches(path: Path) -> object:
    from localdpo.judging.anthropic_batch import BatchLedger

    return BatchLedger(path).batches


def _read_dashboard(path: Path) -> object:
    """What the screens make of a log."""
    from localdpo.dashboard.feed import RunFeed
    from localdpo.dashboard.runstable import RunIndex
    from localdpo.dashboard.terminal import Abilities
    from localdpo.dashboard.widgets.bars import header_words
    from localdpo.dashboard.widgets.log import log_line
    from localdpo.dashboard.widgets.notices import alarms
    from localdpo.dashboard.widgets.tiles import tiles_of

    feed = RunFeed(RunDir(path.parent))
    feed.poll(budget=SLOWEST)
    state = feed.state
    lines = [log_line(event, state.progress.total) for event in state.log()]
    words = [word.text for word in header_words(state, False, 9.0, Abilities())]
    index = RunIndex(path.parent.parent)
    index.refresh(SLOWEST)
    "\n".join([*lines, *words]).encode()
    return index.runs, tiles_of(state), alarms(state, False, 9.0)


def _read_constitution(path: Path) -> object:
    from localdpo.judging.rubric import load_constitution

    return load_constitution(str(path))


def _read_prices(path: Path) -> object:
    from localdpo.judging.cost import load_prices

    return load_prices(path)


def _rows() -> bytes:
    rows = [
        {"prompt": f"Why {n}?", "chosen": f"Because {n}.", "rejected": "No.", "category": {"a": [n, None]}}
        for n in range(4)
    ]
    talk = [{"role": "user", "content": "Why?"}]
    rows.append({"prompt": talk, "chosen": [{"role": "assistant", "content": "So."}], "rejected": "x"})  # type: ignore[dict-item]
    return b"\n".join(json.dumps(row).encode() for row in rows) + b"\n"


def _array() -> bytes:
    return json.dumps([json.loads(line) for line in _rows().splitlines()]).encode()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    rows = [json.loads(line) for line in _rows().splitlines()[:4]]
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="none")
    return sink.getvalue()


def _demo(file: str) -> Callable[[], bytes]:
    return lambda: (_demo_folder() / file).read_bytes()


@lru_cache
def _demo_folder() -> Path:
    from localdpo.core.names import resolve

    return resolve("demo:model")


def _weights() -> bytes:
    from localdpo.core.names import resolve

    return (resolve("demo:sft") / "adapters.safetensors").read_bytes()


def _adapter() -> bytes:
    from localdpo.core.names import resolve

    return (resolve("demo:sft") / "adapter_config.json").read_bytes()


def _shipped(*parts: str) -> Callable[[], bytes]:
    import localdpo

    return lambda: Path(localdpo.__file__).parent.joinpath(*parts).read_bytes()


def _model_beside(folder: Path) -> None:
    shutil.copytree(_demo_folder(), folder, dirs_exist_ok=True)


def _log() -> bytes:
    from localdpo.records.events import encode_event

    metrics = {"loss": 0.69, "rewards/accuracies": 0.5, "rewards/ties": 0.0, "kl": 0.1, "grad_norm": 2.0}
    recipe = {"loss": {"type": "sigmoid", "beta": 0.1}, "model": "m"}
    events = [
        encode_event("data", None, 1.0, {"source": "d", "rows": 9}),
        encode_event("run.started", 0, 1.0, {"model": "m", "loss": "sigmoid", "recipe": recipe, "steps": 9}),
        encode_event("eval", 0, 2.0, {"metrics": metrics}),
        encode_event("step", 1, 3.0, {"metrics": metrics}),
        encode_event("samples", 1, 3.0, {"samples": [{"prompt": "Why?", "answer": "So."}]}),
        encode_event("notice", 1, 3.0, {"level": "warning", "name": "kl", "message": "m", "why": "w"}),
        encode_event("run.continued", 1, 3.0, {"reason": "slept", "seconds": 4}),
        encode_event("checkpoint", 1, 4.0, {"path": "checkpoints/step-000001"}),
        encode_event("run.finished", 1, 5.0, {"seconds": 4.0, "metrics": metrics}),
    ]
    return b"".join(events)


def _journal() -> bytes:
    usage = {"input_tokens": 8, "output_tokens": 9, "cached_tokens": 0, "usd": 0.005}
    verdict = {
        "status": "ok", "choice": "first", "score": None, "reason": "so", "principle": None, "usage": usage,
        "raw": "",
    }  # fmt: skip
    question = {"id": "1", "prompt": "p", "answers": ["a", "b"]}
    record = {"v": 1, "time": 1.0, "key": "a" * 64, "judge": "j", "identity": {}, "question": question}
    return b"".join(
        json.dumps({**record, "key": key * 64, "verdict": verdict}).encode() + b"\n" for key in "abc"
    )


def _written(write: Callable[[Path], None]) -> bytes:
    """What `write` leaves in a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def _votes() -> bytes:
    from localdpo.records.votes import Vote, Votes

    def write(path: Path) -> None:
        votes = Votes(path)
        for number in range(3):
            votes.add(Vote(float(number), f"p{number}", "dpo", "sft", "first", 7, ("one", "two")))
        votes.undo(("p1", "one", "two"))

    return _written(write)


def _answers() -> bytes:
    from localdpo.records.answers import AnswerRecord, AnswersWriter, Header, Sampling

    names = [{"name": name, "label": name, "role": role} for name, role in (("a", "base"), ("b", "trained"))]
    prompts = tuple({"id": str(number), "text": f"question {number}"} for number in range(2))

    def write(path: Path) -> None:
        with AnswersWriter(path, Header("k", "run", Sampling(), tuple(names), prompts)) as writer:
            for number in range(2):
                for name in "ab":
                    writer.answers(AnswerRecord(number, name, f"answer {number}", 3, True, ids=(1, 2)))
                writer.scores(number, {name: {"a": -0.5, "b": -0.25} for name in "ab"})

    return _written(write)


def _rows_beside(folder: Path) -> None:
    (folder / "rows.jsonl").write_bytes(_rows())


def _labels() -> bytes:
    from localdpo.prefs.label import append_record, open_labelling

    def write(path: Path) -> None:
        _rows_beside(path.parent)
        open_labelling(str(path.parent / "rows.jsonl"), path)
        label = {"place": 0, "row": 1, "choice": "1", "swapped": True, "time": 1.0}
        for record in (label, {"undo": 0}, label, {"flag": 1, "on": True}, {"note": 1, "text": "short"}):
            append_record(path, record)

    return _written(write)


_STATE = {
    "v": 1, "step": 2, "random": [0, 7], "seconds": 1.5, "metrics": {"loss": 0.5},
    "inputs": [{"what": "model", "name": "m", "digest": "d"}],
}  # fmt: skip


def _state() -> bytes:
    return json.dumps(_STATE, indent=2).encode()


def _manifest() -> bytes:
    from localdpo.core.atomic import MANIFEST, write_manifest

    def write(path: Path) -> None:
        _state_beside(path.parent)
        write_manifest(path.parent)
        (path.parent / MANIFEST).rename(path)

    return _written(write)


def _state_beside(folder: Path) -> None:
    (folder / "state.json").write_bytes(_state())


def _evaluation() -> bytes:
    from localdpo.answering.contestants import Contestant
    from localdpo.data.prompts import PromptRow
    from localdpo.evals.evaluate import AnsweredPrompts, evaluate
    from localdpo.evals.table import write_record
    from localdpo.heuristics import STANDARD
    from localdpo.judging.registry import Judges
    from localdpo.records.answers import AnswerRecord, Sampling

    roles = (("base", "base"), ("sft", "start"), ("dpo", "trained"))
    every = [Contestant(name, name, None, "none", role) for name, role in roles]  # type: ignore[arg-type]
    rows = [PromptRow(f"prompt {n}", {"category": "ab"[n % 2]}) for n in range(6)]
    answers = {
        name: [AnswerRecord(n, name, f"{name} {n % 4}", 2, True) for n in range(6)] for name, _ in roles
    }
    with TemporaryDirectory() as folder:
        asked = AnsweredPrompts(RunDir(folder), every, rows, "a file", Sampling(), answers)
        record = evaluate("it", asked, STANDARD, Judges(_Longest()))
        return write_record(RunDir(folder), record).read_bytes()


class _Longest(Judge):
    """A judge that prefers the first of two answers unless the second is longer."""

    name = "longest"
    identity: Mapping[str, str] = {"judge": "longest"}

    def ask(self, question: Question) -> Verdict:
        one, other = question.answers
        return Verdict("ok", "second" if len(other) > len(one) else "first", reason="longer")


def _inputs() -> bytes:
    from localdpo.train.inputs import FILE, Input, keep

    with TemporaryDirectory() as folder:
        keep(RunDir(folder), [Input("model", "m", "d"), Input("data.train", "a.jsonl", "e", 7)])
        return (Path(folder) / FILE).read_bytes()


def _batches() -> bytes:
    from localdpo.judging.anthropic_batch import BatchLedger, SentBatch

    def write(path: Path) -> None:
        ledger = BatchLedger(path)
        ledger.add(SentBatch(time=1.0, keys=["a" * 64, "b" * 64], id="msgbatch_1"))
        ledger.add(SentBatch(time=2.0, keys=["c" * 64]))

    return _written(write)


def _recipe_beside(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(RECIPE)


CHECKS = b"""checks:
  - {kind: regex, name: has a number, pattern: '[0-9]+', whole: false}
  - {kind: label, column: answer, pattern: 'Answer: (\\w+)'}
  - {kind: schema, schema: {type: object}}
  - {kind: template, template: 'Level: {level}'}
  - {kind: repetition, n: 3}
  - {kind: refusal, name: no, phrases: [no]}
"""

RECIPE = b"""model: demo:model
adapter: demo:sft
data: {train: [{source: 'demo:human', weight: 2}, 'demo:random'], valid_fraction: 0.1}
lora: {layers: 4, rank: 8, scale: 2.0, keys: [self_attn.q_proj, self_attn.v_proj]}
loss: {type: sigmoid, beta: 0.1}
train:
  batch_size: 4
  learning_rate: 1e-5
  epochs: 1
eval: {every: 10, samples: 2}
"""

READERS: Mapping[str, Reader] = {
    "recipes": Reader("recipe.yaml", lambda: RECIPE, _read_recipe),
    "rows": Reader("rows.jsonl", _rows, _read_rows, is_json=True),
    "arrays of rows": Reader("rows.json", _array, _read_rows, is_json=True),
    "parquet": Reader("rows.parquet", _parquet, _read_rows),
    "prompts": Reader("prompts.jsonl", _rows, _read_prompts, is_json=True),
    "adapters": Reader("adapter_config.json", _adapter, _read_adapter, is_json=True),
    "weights": Reader("adapters.safetensors", _weights, _read_weights),
    "models": Reader("config.json", _demo("config.json"), _read_model, is_json=True, beside=_model_beside),
    "tokenizers": Reader(
        "tokenizer.json", _demo("tokenizer.json"), _read_tokenizer, is_json=True, beside=_model_beside
    ),
    "tokenizer configurations": Reader(
        "tokenizer_config.json",
        _demo("tokenizer_config.json"),
        _read_tokenizer,
        is_json=True,
        beside=_model_beside,
    ),
    "logs": Reader("events.jsonl", _log, _read_log, is_json=True),
    "logs in the dashboard": Reader(
        "events.jsonl", _log, _read_dashboard, is_json=True, beside=_recipe_beside
    ),
    "inputs": Reader("inputs.json", _inputs, _read_inputs, is_json=True, beside=_recipe_beside),
    "states of checkpoints": Reader("state.json", _state, _read_state, is_json=True),
    "manifests": Reader("manifest.json", _manifest, _read_manifest, is_json=True, beside=_state_beside),
    "votes": Reader("votes.jsonl", _votes, _read_votes, is_json=True),
    "answers": Reader("answers.jsonl", _answers, _read_answers, is_json=True),
    "journals of labels": Reader("labels.jsonl", _labels, _read_labels, is_json=True, beside=_rows_beside),
    "evaluations": Reader("it.json", _evaluation, _read_evaluation, is_json=True),
    "ledgers of batches": Reader("batches.json", _batches, _read_batches, is_json=True),
    "constitutions": Reader(
        "own.yaml", _shipped("judging", "constitutions", "assistant.yaml"), _read_constitution
    ),
    "verdicts": Reader("verdicts.jsonl", _journal, _read_verdicts, is_json=True),
    "checks": Reader("checks.yaml", lambda: CHECKS, _read_checks),
    "rubrics": Reader("rubric.md", _shipped("judging", "rubrics", "triage.md"), _read_rubric),
    "prices": Reader("prices.yaml", _shipped("judging", "prices.yaml"), _read_prices),
}

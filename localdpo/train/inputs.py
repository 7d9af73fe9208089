"""The inputs of a run: a digest of each, so that a change between start and resume is noticed.

`inputs.json` in the run's folder is written when the run starts, and a resumed run is compared with it. It is
a file of its own, not an event: the log is for readers and may be cut, and `--accept-changes` must replace
its content. Each checkpoint's state.json repeats the digests that it was trained with, in case inputs.json is
damaged.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from localdpo.core.atomic import write_text
from localdpo.core.errors import LocalDPOError, UserError, UserErrors
from localdpo.core.text import counted
from localdpo.data.sources import open_source
from localdpo.model import lora
from localdpo.model.load import fingerprint, model_path, tokenizer_fingerprint
from localdpo.recipe.schema import Recipe
from localdpo.records.checkpoints import read_log
from localdpo.records.events import read_events
from localdpo.records.log import as_record
from localdpo.records.rundir import RunDir, run_of
from localdpo.records.wording import resume_command
from localdpo.train import checkpoint

if TYPE_CHECKING:
    from localdpo.train.assemble import Session

FILE: Final = "inputs.json"
VERSION: Final = 1
RECIPE, MODEL, TOKENIZER, ADAPTER = "recipe", "model", "tokenizer", "adapter"
REFERENCE: Final = "reference_adapter"
TRAIN, VALID, PROMPTS = "data.train", "data.valid", "eval.prompts"
EVERY: Final = frozenset({MODEL, TOKENIZER, ADAPTER, REFERENCE, TRAIN, VALID, PROMPTS})


@dataclass(frozen=True)
class Input:
    """One input of a run.

    Attributes:
        what: RECIPE, MODEL, TOKENIZER, ADAPTER, REFERENCE, TRAIN, VALID or PROMPTS.
        name: what the recipe calls it; of the recipe itself, its file's name.
        digest: changes with its content.
        rows: of a data set, those that were read; None where that is not known.
    """

    what: str
    name: str
    digest: str
    rows: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.what, self.name

    @property
    def label(self) -> str:
        """Its name in a message."""
        if self.what == RECIPE:
            return self.name
        kind = "tokenizer or chat template of" if self.what == TOKENIZER else self.what
        return f"{kind} {self.name}"


def inputs_of(recipe: Recipe, what: Collection[str] = EVERY) -> list[Input]:
    """The inputs of the recipe as they are now, those of the kinds `what`. Rows are not counted.

    Raises UserErrors for those that are missing or cannot be read, all at once.
    """
    inputs: dict[tuple[str, str], Input] = {}
    problems: list[str] = []
    for kind, name, digest in _digests(recipe):
        if kind not in what or (kind, name) in inputs:
            continue
        try:
            inputs[kind, name] = Input(kind, name, digest())
        except LocalDPOError as error:
            problems += error.lines
        except OSError as error:
            problems.append(f"{kind} {name}: cannot be read ({error.strerror or error})")
    if problems:
        # A model that is missing has no tokenizer either: each line once.
        raise UserErrors([UserError(line) for line in dict.fromkeys(problems)])
    return list(inputs.values())


def recipe_input(run: RunDir) -> Input:
    """The run's own recipe, which every command reads back; the digest is that of its bytes."""
    return Input(RECIPE, run.recipe.name, hashlib.sha256(run.recipe.read_bytes()).hexdigest())


def _digests(recipe: Recipe) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """(what, name, function that computes the digest) of every input."""
    yield MODEL, recipe.model, lambda: fingerprint(model_path(recipe.model))
    yield TOKENIZER, recipe.model, lambda: tokenizer_fingerprint(model_path(recipe.model))
    if recipe.adapter is not None:
        adapter = recipe.adapter
        yield ADAPTER, adapter, lambda: lora.adapter_fingerprint(lora.open_adapter(adapter).path)
    if recipe.reference_adapter is not None and (reference := recipe.reference) is not None:
        yield REFERENCE, reference, lambda: lora.adapter_fingerprint(lora.open_adapter(reference).path)
    sources = [(TRAIN, entry.source) for entry in recipe.data.train_sources]
    sources += [(VALID, entry.source) for entry in recipe.data.valid_sources]
    if recipe.eval.prompts is not None and recipe.eval.samples > 0:
        sources.append((PROMPTS, recipe.eval.prompts))
    for what, source in sources:
        yield what, source, partial(lambda name: open_source(name).digest, source)


def with_rows(inputs: Sequence[Input], session: Session) -> list[Input]:
    """The inputs with the rows that were read of each data set."""
    parts = [(TRAIN, part) for part in session.train.store.parts]
    parts += [(VALID, part) for part in session.valid.store.parts]
    # A pair that was split counts as two in the report.
    rows = {(what, p.source): p.store.report.read - p.store.report.split for what, p in parts}
    return [replace(entry, rows=rows.get(entry.key)) for entry in inputs]


# --- the file ------------------------------------------------------------------------------------------


def to_json(inputs: Sequence[Input]) -> list[dict[str, Any]]:
    """Their JSON form, without rows that are not known."""
    return [{k: v for k, v in asdict(entry).items() if v is not None} for entry in inputs]


def from_json(values: Any) -> list[Input]:
    """The inputs from their JSON form. Raises ValueError or TypeError for an invalid one."""
    return [as_record(Input, value) for value in values]


def keep(run: RunDir, inputs: Sequence[Input]) -> None:
    """Write the run's inputs.json, with its own checksum, unless it has this content already.

    Raises UserError when the disk is full.
    """
    with suppress(FileNotFoundError):
        if read(run) == list(inputs):
            return
    value = {"v": VERSION, "inputs": to_json(inputs)}
    value["sha256"] = _checksum(value)
    write_text(run.path / FILE, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read(run: RunDir) -> list[Input] | None:
    """The inputs in the run's inputs.json; None where it is damaged.

    Raises FileNotFoundError when there is none.
    """
    content = (run.path / FILE).read_bytes()
    try:
        value = json.loads(content)
        return from_json(value["inputs"]) if value.pop("sha256") == _checksum(value) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- what changed --------------------------------------------------------------------------------------


def changes(recipe: Recipe, before: Sequence[Input], now: Sequence[Input]) -> list[str]:
    """A line for each input that changed: `data.train a.jsonl: changed (20 rows then, 21 now)`."""
    was = {entry.key: entry for entry in before}
    return [
        f"{entry.label}: changed{_rows_then_and_now(recipe, was[entry.key])}"
        for entry in now
        if entry.key in was and was[entry.key].digest != entry.digest
    ]


def _rows_then_and_now(recipe: Recipe, before: Input) -> str:
    """` (20 rows then, 21 now)`; empty where the rows then are not known, or those now cannot be read."""
    if before.rows is None:
        return ""
    sources = recipe.data.train_sources if before.what == TRAIN else recipe.data.valid_sources
    own = {entry.source: entry.limit for entry in sources}[before.name]
    limit = own or (recipe.data.limit if before.what == TRAIN else None)
    try:
        now = sum(1 for _ in itertools.islice(open_source(before.name).rows(), limit))
    except LocalDPOError:
        return ""
    return f" ({counted(before.rows, 'row')} then, {now:,} now)"


def recorded(run: RunDir, note: Callable[[str], None]) -> list[Input] | None:
    """The inputs that the run started with, None without any record; `note` reports a damaged inputs.json."""
    try:
        inputs = read(run)
    except FileNotFoundError:
        return _of_checkpoint(run)
    if inputs is None:
        inputs = _of_checkpoint(run)
        other = "no checkpoint has a copy" if inputs is None else "its copy in a checkpoint is used"
        note(f"{run.path / FILE}: damaged; {other}")
    return inputs


def _of_checkpoint(run: RunDir) -> list[Input] | None:
    newest, _ = checkpoint.newest_valid(run)
    if newest is None or not newest.state.inputs:
        return None
    try:
        return from_json(newest.state.inputs)
    except (ValueError, TypeError):
        return None


def require_unchanged(
    run: RunDir, recipe: Recipe, now: Sequence[Input], *, accept: bool, note: Callable[[str], None]
) -> None:
    """Compare a resumed run with the inputs that it started with.

    `note` reports changes when `accept`, and a run of a version that recorded no digests.

    Raises UserErrors for inputs that changed, unless they are accepted.
    """
    before = recorded(run, note)
    if before is None:
        if any(event.type == "run.started" for event in read_events(run.events)):
            rows = "" if recipe.data.valid is not None else "; its held-out rows may be different ones now"
            note(f"this run has no record of its inputs: the current ones are recorded from here on{rows}")
        return
    changed = [f"{line} since run {run.name} began" for line in changes(recipe, before, now)]
    if accept:
        for line in changed:
            note(f"{line}; accepted with --accept-changes")
    elif changed:
        how = f"restore it, or resume with what is there now: {resume_command(run)} --accept-changes"
        raise UserErrors([UserError(f"{line}; {how}") for line in changed])


def tell_changes(run: RunDir, recipe: Recipe, what: Collection[str], note: Callable[[str], None]) -> None:
    """Report damaged lines in the run's log, and which of its recipe and its inputs `what` are not those that
    it was trained with.
    """
    read_log(run, note, alive=run.is_running())
    before = recorded(run, note)
    if before is None:
        return

    def report(now: Sequence[Input]) -> None:
        for line in changes(recipe, before, now):
            note(f"{line} since run {run.name} began: what is shown is not what it was trained with")

    # First, since it may name other inputs, which are not there.
    report([recipe_input(run)])
    report(inputs_of(recipe, what))


def living_start(recipe: Recipe) -> list[str]:
    """A line where the start adapter is a checkpoint of a run that still trains."""
    other = None if recipe.adapter is None else run_of(Path(recipe.adapter).expanduser())
    if other is None or not other.is_running():
        return []
    return [
        f"adapter {recipe.adapter}: run {other.name} still trains, and may take this checkpoint away "
        "(its save.keep); a copy of it elsewhere is safe"
    ]

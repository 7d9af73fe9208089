"""The model card of an export: what it is, how to run it, what was checked, how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from huggingface_hub import ModelCard, ModelCardData

from localdpo import __version__
from localdpo.core.text import counted
from localdpo.evals.table import latest_record, markdown, markdown_table
from localdpo.interop.check import LEAST_KEPT, ArtefactReport, table
from localdpo.interop.targets import Target
from localdpo.interop.trained import CARD, Origin, Trained, base_of, data_of, original_of, public
from localdpo.model.load import looks_local
from localdpo.recipe.load import dump_recipe
from localdpo.records.events import effective, read_events
from localdpo.records.metrics import BY_NAME, in_order, metrics_of

_UNKNOWN: Final = "not stated where it came from"


def write_card(folder: Path, trained: Trained, target: Target, check: ArtefactReport, called: str) -> None:
    """README.md of an artefact, which is `called` so where it is run: the name of its folder, or of its
    repository. Raises UserError when the run's evaluation is damaged.
    """
    recipe = trained.recipe
    base = base_of(recipe, trained.base)
    original = original_of(recipe, trained.base)
    on_hub = base.hub if original is None or looks_local(original) else original
    data, loss = data_of(recipe), recipe.loss.spec.name
    metadata = ModelCardData(
        license=base.licence,
        base_model=on_hub,
        base_model_relation=target.relation if on_hub else None,
        datasets=[origin.hub for origin in data if origin.hub] or None,
        library_name=target.library,
        pipeline_tag="text-generation",
        tags=["localdpo", "dpo" if loss == "sigmoid" else loss, trained.shape.type],
    )
    run = trained.run.name
    parts = [
        f"# {run}",
        f"{target.what[0].upper()}{target.what[1:]}: {base.name}, trained by localdpo {__version__}.",
        "## How to run it",
        target.run.replace("REPO", called).replace("BASE", on_hub or base.name).strip(),
        "## Checked against the run",
        _checked(check),
        "## Training",
        _training(trained, base, data),
        f"```yaml\n{dump_recipe(recipe, public)}```",
        *_metrics(trained),
        *_evaluation(trained),
    ]
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(folder / CARD)


def _checked(check: ArtefactReport) -> str:
    lines = [
        "The same rows under base + adapter and under these files, loaded anew. The "
        f"{check.measure} is the change since the run began.",
        "",
        markdown_table(table(check)),
    ]
    if not check.passed:
        lines += [
            "",
            f"**This export failed its check**: it keeps {100 * check.kept:.1f}% of what was trained, less "
            f"than {100 * LEAST_KEPT:.0f}%. It was written all the same, on request.",
        ]
    return "\n".join(lines)


def _training(trained: Trained, base: Origin, data: Sequence[Origin]) -> str:
    shape = trained.shape
    lines = [f"- base model: `{base.name}`, licence: {base.licence or _UNKNOWN}"]
    lines += [f"- data: `{origin.name}`, licence: {origin.licence or _UNKNOWN}" for origin in data]
    lines += [
        f"- loss: `{trained.recipe.loss.spec.name}`",
        f"- adapter: {shape.type}, rank {shape.rank}, scale {shape.scale:g}, of "
        f"{'all blocks' if shape.layers == -1 else 'the last ' + counted(shape.layers, 'block')}",
        f"- checkpoint: {trained.adapter.name}",
    ]
    return "\n".join(lines)


def _metrics(trained: Trained) -> list[str]:
    """The metrics of the held-out rows at the last evaluation before the checkpoint, if there is one."""
    step = int(trained.adapter.name.removeprefix("step-"))
    events = [
        event
        for event in effective(read_events(trained.run.events))
        if event.type == "eval" and event.step is not None and event.step <= step
    ]
    if not events:
        return []
    rows = [("metric", "value", "unit")] + [
        (name, f"{value:.4g}", BY_NAME[name].unit if name in BY_NAME else "")
        for name, value in in_order(metrics_of(events[-1])).items()
        if value is not None
    ]
    return [f"## Held-out metrics at step {events[-1].step:,}", markdown_table(rows)]


def _evaluation(trained: Trained) -> list[str]:
    """The run's last evaluation, as `localdpo eval` words it, a heading lower."""
    record = latest_record(trained.run)
    if record is None:
        return []
    return ["\n".join(f"#{line}" if line.startswith("#") else line for line in markdown(record).splitlines())]

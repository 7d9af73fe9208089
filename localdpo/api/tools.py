"""Runs as tools of the Model Context Protocol, by the official SDK: `localdpo mcp`.

Nothing here deletes or replaces: no run is removed, none is stopped without a checkpoint, nothing is forced.
A judge may cost nothing unless the caller says how much, and code of others is not run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from localdpo import __version__
from localdpo.api.runs import Run, find_run
from localdpo.api.training import train
from localdpo.core.errors import LocalDPOError, UserError
from localdpo.out import note
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import answers_object
from localdpo.records.catalog import find_series, read_all, results_json, summary_of
from localdpo.records.control import Command
from localdpo.records.events import finite
from localdpo.records.rundir import check_name

INSTRUCTIONS: Final = (
    "Preference training (DPO and its relatives) of language models on this machine. A run trains in a "
    "process of its own: start returns at once, read_run says how far it is. compare and evaluate load the "
    "model and take minutes. Run names are those of list_runs; without a name the latest run is meant. "
    "Rounds and sweeps are series of runs: list_runs has each before its runs, which are named SERIES/RUN, "
    "and read_run reads either."
)
# A call holds the model, and those after it wait: these end within minutes on any machine.
_Answer = Annotated[int, Field(ge=1, le=4096)]
_Prompts = Annotated[list[Annotated[str, Field(max_length=20_000)]], Field(min_length=1, max_length=100)]
_Limit = Annotated[int, Field(ge=1, le=1000)]
# What a client reads in one go.
LAST: Final = 10
POINTS: Final = 100
_READS: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ACTS: Final = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)

_Tool = TypeVar("_Tool", bound=Callable[..., Any])


def make_server(runs_dir: Path) -> MCPServer:
    tools = RunTools(runs_dir)
    server = MCPServer("localdpo", instructions=INSTRUCTIONS, version=__version__)
    reads: list[Callable[..., Any]] = [tools.list_runs, tools.read_run, tools.read_metrics]
    acts: list[Callable[..., Any]] = [tools.start, tools.steer, tools.compare, tools.evaluate]
    for tool in (*reads, *acts):
        server.add_tool(_said(tool), annotations=_READS if tool in reads else _ACTS)
    return server


def _said(tool: _Tool) -> _Tool:
    """The tool with its errors as the client is to read them: the SDK would hide their text."""

    @functools.wraps(tool)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return tool(*arguments, **options)
        except LocalDPOError as error:
            raise ToolError("\n".join(error.lines)) from error

    return called  # type: ignore[return-value]


class RunTools:
    """The tools; their docstrings are what a client is told."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        # Each call has a thread of its own, and two models may not fit.
        self._model = threading.Lock()

    def list_runs(self) -> list[dict[str, Any]]:
        """List the runs, the latest first: state, step, loss, and the metrics of the last evaluation.

        A series of rounds or a sweep comes before its runs: its loss is rounds or sweep, its steps are runs.
        """
        return [finite(summary.to_json()) for summary in read_all(self._runs_dir, note)]

    def read_run(self, run: str | None = None) -> dict[str, Any]:
        """Read a run: its summary, the latest notices and samples, its checkpoints and evaluations.

        Read a series: its summary and what came of its runs, win rates and KL among it.
        """
        if run is not None and (series := find_series(self._runs_dir, _checked(run))) is not None:
            results = {**summary_of(series).to_json(), "path": str(series.path), **results_json(series)}
            return finite(results)
        found = self._run(run)
        return {
            **finite(found.summary().to_json()),
            "path": str(found.path),
            "recipe": found.folder.recipe.read_text(encoding="utf-8"),
            "notices": [notice.text for notice in found.notices()[-LAST:]],
            "samples": [asdict(sample) for sample in found.samples()[-LAST:]],
            "checkpoints": [str(checkpoint.path) for checkpoint in found.checkpoints()],
            "evaluations": {one.name: list(one.conclusion) for one in found.evaluations()},
        }

    def read_metrics(
        self, run: str | None = None, kind: Literal["step", "eval"] = "step", names: list[str] | None = None
    ) -> dict[str, list[float | None]]:
        """Read metrics by step, of training steps or of evaluations; long runs are thinned to 100 points.

        Without names: all. Log-probabilities are in nats; null where there is no value.
        """
        found = self._run(run).metrics(kind)
        if unknown := [name for name in names or () if name not in found]:
            raise UserError(f"{unknown[0]}: no such metric; expected one of {', '.join(found)}")
        count = len(found["step"])
        kept = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(np.int64))
        wanted = dict.fromkeys(["step", *(names or found)])
        return {name: finite(found[name][kept].tolist()) for name in wanted}

    def start(self, recipe: str, overrides: list[str] | None = None, name: str | None = None) -> str:
        """Start training with a recipe file, or resume the run of that name; returns the run's name at once.

        overrides: KEY=VALUE on top of the recipe, such as loss.beta=0.2.
        """
        # What is no recipe is quoted in the error, and not every file is for a client to read.
        if Path(recipe).suffix not in (".yaml", ".yml"):
            raise UserError(f"{recipe}: expected a recipe, a file that ends in .yaml or .yml")
        if load_recipe(recipe, overrides or ()).trust_remote_code:
            raise UserError(f"{recipe}: trust_remote_code runs code of others; start it by hand")
        return train(recipe, overrides or (), name=name, runs_dir=self._runs_dir, wait=False).name

    def steer(self, run: str, command: Command) -> str:
        """Pause, resume, checkpoint, evaluate or stop a run that trains; what its worker answers.

        stop saves a checkpoint first; start resumes from it.
        """
        return self._run(run).steer(command)

    def compare(self, prompts: _Prompts, run: str | None = None, max_tokens: _Answer = 256) -> dict[str, Any]:
        """Let the base model, the model before training and the trained model answer the same prompts."""
        from localdpo.api import work

        with self._model:
            return answers_object(work.compare(self._run(run), texts=prompts, max_tokens=max_tokens))

    def evaluate(
        self,
        run: str | None = None,
        limit: _Limit = 32,
        max_tokens: _Answer = 256,
        judge: str | None = None,
        max_usd: float = 0.0,
    ) -> dict[str, Any]:
        """Did training help? Measures answers to held-out prompts, and lets a judge compare them.

        judge: rules (the demo's data), mlx:MODEL (local), anthropic or openai:URL#MODEL. max_usd is the most
        that may be spent on it.
        """
        from localdpo.api import work

        with self._model:
            found = work.evaluate(
                self._run(run),
                limit=limit,
                max_tokens=max_tokens,
                judge=judge,
                max_usd=None if judge is None else max_usd,
            )
        record = found.record
        return {key: record[key] for key in ("name", "judge", "source", "metrics", "duels", "conclusion")}

    def _run(self, name: str | None) -> Run:
        return find_run(None if name is None else _checked(name), self._runs_dir)


def _checked(name: str) -> str:
    """The name of a run, or of one in a series. Raises UserError for a path to anywhere else."""
    series, slash, run = name.partition("/")
    check_name(series)
    if slash:
        check_name(run)
    return name

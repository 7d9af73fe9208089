"""What every tracker is shown of a run and has to do, the four trackers, and their table."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from localdpo.core.errors import UserError, UserErrors
from localdpo.records.rundir import Ending

# The project (of MLflow: the experiment) where the tracker's own environment variable names none.
PROJECT: Final = "localdpo"
SAMPLE_COLUMNS: Final = ("prompt", "reference", "policy")
EVAL: Final = "eval_"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        id: unlike that of any other run, and the same whenever this one is shown.
        recipe: every option, as the run.started event has it.
        started: Unix time in seconds.
    """

    id: str
    name: str
    folder: Path
    recipe: Mapping[str, Any]
    started: float


@dataclass
class Row:
    """What a run measured at one step.

    Attributes:
        time: Unix time in seconds.
        metrics: by TRL's names, those of an evaluation with `eval_` in front.
        samples: (prompt, answer of the reference, answer of the policy) of each watched prompt.
    """

    step: int
    time: float
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)


class Tracker(Protocol):
    """One run in one tracker, open to be written. Opening, logging and finishing may raise what they like.

    Attributes:
        place: where a person finds the run; no secret is in it.
        last_step: the highest step that the tracker has of it, -1 for none.
    """

    @property
    def place(self) -> str: ...

    @property
    def last_step(self) -> int: ...

    def log(self, rows: Sequence[Row]) -> None:
        """Add rows of steps above `last_step`, in order."""

    def finish(self, ending: Ending) -> None:
        """Write what is left; the run has ended in this way."""


def charted(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under the names that transformers' callbacks give them: `train/loss`, `eval/loss`."""
    return {
        f"eval/{name.removeprefix(EVAL)}" if name.startswith(EVAL) else f"train/{name}": value
        for name, value in metrics.items()
    }


# The x axis of all charts, as transformers' callback has it.
_STEP: Final = "train/global_step"
_UPLOADED: Final = "*.wandb.synced"


class Wandb:
    """A run of Weights & Biases; its files are in the folder of the run, unless WANDB_DIR says otherwise.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and the like mean what they always mean. A run that is
    shown again is resumed by its id where a server has it. Without a server (offline) a run is written anew
    and takes the place of its earlier folders that were not uploaded yet.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            config=dict(run.recipe),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        self._folder = Path(self._run.dir).parent
        self.place = str(self._folder if self._run.offline else self._run.url)
        self.last_step = int(self._run.step) - 1

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values: dict[str, Any] = {**charted(row.metrics), _STEP: row.step, "_timestamp": row.time}
            if row.samples:
                table = [list(sample) for sample in row.samples]
                values["samples"] = self._wandb.Table(columns=list(SAMPLE_COLUMNS), data=table)
            self._run.log(values, step=row.step)

    def finish(self, ending: Ending) -> None:
        offline = self._run.offline
        self._run.finish(exit_code=0 if ending in ("finished", "stopped") else 1)
        if offline:
            for earlier in self._folder.parent.glob(f"offline-run-*-{self._run.id}"):
                if earlier != self._folder and not list(earlier.glob(_UPLOADED)):
                    shutil.rmtree(earlier)


_FILES: Final = "events.out.tfevents.*"


class TensorBoard:
    """The event file of a run, in its folder, so that `tensorboard --logdir runs` shows every run.

    Its numbers are float32, as in every event file. A run that is shown again is written to a new file, which
    takes the place of the earlier one.
    """

    last_step: Final = -1

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._text = event_pb2.Event, summary_pb2.Summary, text_pb
        earlier = list(run.folder.glob(_FILES))
        self._writer = EventFileWriter(str(run.folder))
        for path in earlier:
            path.unlink()
        # A TensorBoard that shows the earlier file drops its points when it reads this.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(wall_time=run.started, step=0, session_log=session))
        recipe = json.dumps(run.recipe, indent=2, ensure_ascii=False)
        self._add(0, run.started, text_pb("recipe", f"```\n{recipe}\n```"))
        self._writer.flush()
        self.place = f"tensorboard --logdir {run.folder.parent}"

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            summary = self._summary()
            for name, value in charted(row.metrics).items():
                summary.value.add(tag=name, simple_value=value)
            self._add(row.step, row.time, summary)
            if row.samples:
                table = [[cell.encode() for cell in line] for line in (SAMPLE_COLUMNS, *row.samples)]
                self._add(row.step, row.time, self._text("samples", table))
        self._writer.flush()

    def finish(self, ending: Ending) -> None:
        self._writer.close()

    def _add(self, step: int, time: float, summary: object) -> None:
        self._writer.add_event(self._event(wall_time=time, step=step, summary=summary))


class Trackio:
    """A run of Trackio, in the local store or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say.

    It knows runs by their names, so the name has the id in it. Times that it shows are those of reporting.
    """

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._table = trackio.Table
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run: Any = trackio.init(
            project=project,
            name=f"{run.name}-{run.id}",
            config=dict(run.recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.place = self._run.url or f"trackio show --project {project}"
        # Without a step, Trackio counts on from the last one that it has.
        self.last_step = int(self._run._next_step) - 1

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values: dict[str, Any] = dict(charted(row.metrics))
            if row.samples:
                table = [list(sample) for sample in row.samples]
                values["samples"] = self._table(columns=list(SAMPLE_COLUMNS), data=table)
            self._run.log(values, step=row.step)

    def finish(self, ending: Ending) -> None:
        self._run.finish()


TAG: Final = "localdpo.run"
# MLflow takes 1,000 metrics and 100 parameters in a batch. A batch of metrics ends with a row, so that a step
# of which there is anything is there whole.
_MOST_ROWS: Final = 10
_MOST_PARAMS: Final = 100
_LONGEST_PARAM: Final = 6000
_STATUS: Final[Mapping[Ending, str]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "crashed": "FAILED",
}
_CREDENTIALS: Final = re.compile(r"//[^/@]*@")


class MLflow:
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI and the experiment of MLFLOW_EXPERIMENT_NAME.

    A run that is shown again is found by its tag. Metrics have TRL's names: `loss`, `eval_loss`.
    """

    def __init__(self, run: TrackedRun) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client: Any = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        known = self._client.search_runs([where], filter_string=f"tags.`{TAG}` = '{run.id}'", max_results=1)
        self.last_step = -1
        if known:
            self._id = known[0].info.run_id
            names = known[0].data.metrics
            histories = (self._client.get_metric_history(self._id, name) for name in names)
            self.last_step = max((metric.step for history in histories for metric in history), default=-1)
            self._client.update_run(self._id, status="RUNNING")
        else:
            created = self._client.create_run(
                where, start_time=int(run.started * 1000), tags={TAG: run.id}, run_name=run.name
            )
            self._id = created.info.run_id
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in _flat(run.recipe)]
            for start in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])
        server = _CREDENTIALS.sub("//", mlflow.get_tracking_uri())
        self.place = f"run {self._id} of experiment {name} in {server}"

    def log(self, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), _MOST_ROWS):
            metrics = [
                self._metric(name, value, int(row.time * 1000), row.step)
                for row in rows[start : start + _MOST_ROWS]
                for name, value in row.metrics.items()
            ]
            self._client.log_batch(self._id, metrics=metrics)
        samples = [(row.step, *sample) for row in rows for sample in row.samples]
        if samples:
            columns = ("step", *SAMPLE_COLUMNS)
            table = dict(zip(columns, map(list, zip(*samples, strict=True)), strict=True))
            self._client.log_table(self._id, table, "samples.json")

    def finish(self, ending: Ending) -> None:
        self._client.set_terminated(self._id, _STATUS[ending])


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The options with dotted names: `train.learning_rate`."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


# As in report_to of Hugging Face's trainers. Each is the name of its package and of the extra, too.
TrackerName = Literal["wandb", "tensorboard", "trackio", "mlflow"]

TRACKERS: Final[Mapping[str, Callable[[TrackedRun], Tracker]]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def require_packages(names: Iterable[str], place: str = "report_to") -> None:
    """Raises UserErrors if the package of a tracker is not installed; `place` is the option that names it."""
    missing = [
        UserError(f"{place}: {name} needs the package {name}: pip install 'localdpo[{name}]'")
        for name in names
        # A folder of the same name, as wandb leaves one behind, is a package without a file.
        if (spec := find_spec(name)) is None or spec.origin is None
    ]
    if missing:
        raise UserErrors(missing)

"""MLflow: the server or store of MLFLOW_TRACKING_URI, the experiment of MLFLOW_EXPERIMENT_NAME.

A run that is shown again is found by its tag. Metrics have TRL's names: `loss`, `eval_loss`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from localdpo.records.rundir import Ending
from localdpo.trackers.base import PROJECT, SAMPLE_COLUMNS, Row, TrackedRun

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
    """A run of MLflow."""

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
            self.last_step = max(
                (metric.step for name in names for metric in self._history(name)), default=-1
            )
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

    def _history(self, name: str) -> list[Any]:
        return list(self._client.get_metric_history(self._id, name))


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The options with dotted names: `train.learning_rate`."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value

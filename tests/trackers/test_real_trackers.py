"""What a tracker's own reader gives back is the log of the run: `make test-trackers`, all on this machine."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import RECIPE, as_charted, points_of, resume, samples_in, stopped_run, times_of

from localdpo.launch.reporting import start_reporter
from localdpo.records.rundir import RunDir

# Warnings are the trackers' own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
KEY = "0123456789abcdef0123456789abcdef01234567"
MISSING = "the package {} is not installed; make test-trackers installs it"
Points = dict[tuple[str, int], float]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that was shown when it had stopped, and will be again when it has finished."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": KEY,
        "MLFLOW_TRACKING_TOKEN": KEY,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return stopped_run(Path("runs"))


def require(package: str) -> None:
    pytest.importorskip(package, reason=MISSING.format(package))


def show(run: RunDir, name: str) -> None:
    job = start_reporter(run, name, "")
    job.wait()
    assert job.problem() is None, "\n".join(job.lines())


def show_thrice(run: RunDir, name: str) -> None:
    """After its stop, and twice after its end."""
    show(run, name)
    resume(run)
    show(run, name)
    show(run, name)
    for path in run.path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_tensorboard(run: RunDir):
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    show_thrice(run, "tensorboard")
    reader = EventAccumulator(str(run.path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = [(tag, point) for tag in reader.Tags()["scalars"] for point in reader.Scalars(tag)]
    assert len(scalars) == len(points_of(run))
    single = {key: struct.unpack("f", struct.pack("f", value))[0] for key, value in charted(run).items()}
    assert {(tag, point.step): point.value for tag, point in scalars} == single
    tables = [
        (point.step, *(cell.decode() for cell in point.tensor_proto.string_val[3:]))
        for point in reader.Tensors("samples")
    ]
    assert tables == samples_in(run)
    (recipe,) = reader.Tensors("recipe")
    assert '"learning_rate": 5e-06' in recipe.tensor_proto.string_val[0].decode()
    assert len(list(run.path.glob("events.out.tfevents.*"))) == 1


def test_wandb(run: RunDir):
    require("wandb")
    show_thrice(run, "wandb")
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (path,) = folder.glob("*.wandb")
    points, tables, config, times = Points(), [], {}, times_of(run)
    for record in wandb_records(path):
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        values = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        if not values:
            continue
        step = values.pop("train/global_step")
        assert record.history.step.num == step
        assert values.pop("_timestamp") == pytest.approx(times[step], abs=1e-3)
        if table := values.get("samples/path"):
            content = json.loads((folder / "files" / table).read_text())
            assert content["columns"] == ["prompt", "reference", "policy"]
            tables += [(step, *row) for row in content["data"]]
        for name, value in values.items():
            if not name.startswith(("_", "samples/")):
                assert (name, step) not in points
                points[name, step] = value
    assert points == charted(run)
    assert tables == samples_in(run)
    assert {key: config[key] for key in RECIPE} == RECIPE


def test_trackio(run: RunDir):
    require("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    show_thrice(run, "trackio")
    (name,) = SQLiteStorage.get_runs("localdpo")
    assert name.startswith("dpo-")
    rows = SQLiteStorage.get_logs("localdpo", name)
    assert [row["step"] for row in rows] == list(range(7))
    points = {
        (key, row["step"]): value
        for row in rows
        for key, value in row.items()
        if key.startswith(("train/", "eval/"))
    }
    assert points.keys() == charted(run).keys()
    assert all(math.isclose(value, charted(run)[key], rel_tol=1e-15) for key, value in points.items())
    tables = [
        (row["step"], line["prompt"], line["reference"], line["policy"])
        for row in rows
        if "samples" in row
        for line in row["samples"]["_value"]
    ]
    assert tables == samples_in(run)
    config = SQLiteStorage.get_run_config("localdpo", name)
    assert config is not None
    assert {key: config[key] for key in RECIPE} == RECIPE


def test_mlflow(run: RunDir):
    require("mlflow")
    from mlflow import MlflowClient

    show_thrice(run, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("localdpo")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("dpo", "FINISHED")
    history = [
        point for name in found.data.metrics for point in client.get_metric_history(found.info.run_id, name)
    ]
    assert len(history) == len(points_of(run))
    assert {(point.key, point.step): point.value for point in history} == points_of(run)
    times = times_of(run)
    assert all(point.timestamp == int(times[point.step] * 1000) for point in history if point.step < 4)
    assert found.data.params["train.learning_rate"] == "5e-06"
    artifact = Path(client.download_artifacts(found.info.run_id, "samples.json"))
    assert [tuple(row) for row in json.loads(artifact.read_text())["data"]] == samples_in(run)


def charted(run: RunDir) -> Points:
    return as_charted(points_of(run))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's format of logs, in blocks of 32 KiB, after a header of 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, record = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # all of a record, the last part of one
            yield Record.FromString(record)
            record = b""

"""Steps of DPO on the demo model, against the fifty that are written down in golden_dpo.json: the first 10 in
`make test`, all in `make test-long`.

Whatever changes the numbers of training fails here: the order of batches, the tokens that are scored, the
forward pass, a loss, the optimizer, the schedule. Where the change is meant, or the demo was built anew:

    LOCALDPO_UPDATE_GOLDEN=1 python -m pytest -m long tests/train/test_golden.py
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import metrics_of, session_of

from localdpo.core.names import BUNDLE
from localdpo.model.backend import device_name
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import RunDir
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden_dpo.json")
UPDATE = "LOCALDPO_UPDATE_GOLDEN"
STEPS = 50
# Short name in the file -> the metric. Norms are those before clipping.
RECORDED = {"loss": "loss", "grad_norm": "grad_norm", "margin": "rewards/margins"}
RECIPE = f"""
model: demo:model
adapter: demo:sft
data: {{train: demo:preferences/train, valid: demo:preferences/valid}}
loss: {{type: sigmoid, beta: 0.1}}
train: {{epochs: 100, max_steps: {STEPS}, batch_size: 4, learning_rate: 3e-4, max_length: 512, seed: 0}}
eval: {{every: {STEPS}, pairs: 1, samples: 0, kl_pairs: 0}}
save: {{every: {STEPS}}}
"""
# Every BLAS and every processor sums a product in its own order, so float32 results differ by some 1e-7, and
# Adam, which divides by the gradients' own size, lets that grow. Over these steps OpenBLAS and the reference
# BLAS came apart by 8e-7 (loss) and 3e-6 (gradient norm); 1e-4 leaves room for other processors and is far
# below what a change of the computation makes.
RTOL = 1e-4
# Of a margin, in reward units: beta times a difference of float32 sums of 100 nats, which are spaced 8e-6.
ATOL = {"loss": 0.0, "grad_norm": 0.0, "margin": 1e-5}


def inputs() -> dict[str, str]:
    """Hashes of what the run starts from."""
    files = ["model/model.safetensors", "model/tokenizer.json", "sft/adapters.safetensors"]
    files += ["model/chat_template.jinja", "preferences/train.jsonl"]
    return {file: hashlib.sha256((BUNDLE / file).read_bytes()).hexdigest()[:16] for file in files}


class StoppingLog(EventWriter):
    """A log that asks the run to stop without saving once it has this step."""

    def __init__(self, run: RunDir, last: int, stop: StopRequest) -> None:
        super().__init__(run.events)
        self.last, self.stop = last, stop

    def write(self, type: str, step: int | None = None, **fields: Any) -> Event:
        if (type, step) == ("step", self.last):
            self.stop.reason, self.stop.save = "stop", False
        return super().write(type, step, **fields)


def trajectory(folder: Path, count: int) -> dict[str, list[float]]:
    """The recorded metrics of the first steps."""
    session, run, stop = session_of(folder, RECIPE), RunDir(folder), StopRequest()
    with StoppingLog(run, count, stop) as log:
        Loop(session, run, log, stop).run()
    steps = metrics_of(run, "step")
    assert len(steps) == count
    return {short: [step[name] for step in steps] for short, name in RECORDED.items()}


def write_golden(found: dict[str, Any]) -> None:
    content = {"inputs": inputs(), **{name: [float(f"{v:.8g}") for v in found[name]] for name in RECORDED}}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@pytest.mark.timeout(600)  # minutes without OpenBLAS, seconds with it
@pytest.mark.skipif(device_name() != "cpu", reason="the golden steps are those of the CPU backend in float32")
@pytest.mark.parametrize("count", [10, pytest.param(STEPS, marks=pytest.mark.long)])
def test_the_steps_are_the_golden_ones(tmp_path: Path, own_cache: Path, count: int) -> None:
    found = trajectory(tmp_path / "run", count)
    if os.environ.get(UPDATE) == "1" and count == STEPS:
        write_golden(found)
        pytest.skip(f"{GOLDEN.name} was written anew")
    golden = json.loads(GOLDEN.read_text())
    assert golden["inputs"] == inputs(), f"the demo was built anew: run this test once with {UPDATE}=1"
    for name in RECORDED:
        np.testing.assert_allclose(
            found[name], golden[name][:count], rtol=RTOL, atol=ATOL[name], err_msg=name
        )
    # Training has taken place: the golden steps are not those of a model that stands still.
    assert np.mean(golden["loss"][-5:]) < np.log(2) - 0.01

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from made_runs import make_run

from localdpo.core.errors import UserError
from localdpo.dashboard.pairsfile import load_pairs
from localdpo.records.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path, "dpo")


def test_the_pairs_of_a_step(run: RunDir):
    found = load_pairs(run, "pairs/step-000040.json")
    assert (found.step, found.beta) == (40, 0.1)
    first = found.pairs[0]
    assert (first.row, first.source, first.prompt) == (7, "demo:preferences/valid", "Triage report 7.")
    assert first.margin == pytest.approx(-0.24)
    assert first.chosen.tokens[1] == (": SEV2", 0.08)
    assert first.rejected.text == "Severity: SEV4\nNext: leave it."


def test_a_file_that_changed_is_read_again(run: RunDir):
    path = run.path / "pairs" / "step-000040.json"
    assert load_pairs(run, "pairs/step-000040.json").pairs
    path.write_text('{"step": 40, "beta": 0.2, "pairs": []}')
    os.utime(path, (1, 1))
    assert load_pairs(run, "pairs/step-000040.json").beta == 0.2


def test_what_was_not_finite_is_no_number(run: RunDir):
    path = run.path / "pairs" / "odd.json"
    side = '{"text": "a", "reward": null, "tokens": [["a", null]]}'
    path.write_text(
        f'{{"step": 1, "beta": 0.1, "pairs": [{{"row": 1, "source": "s", "prompt": "p", "margin": null,'
        f' "chosen": {side}, "rejected": {side}}}]}}'
    )
    (pair,) = load_pairs(run, "pairs/odd.json").pairs
    assert math.isnan(pair.margin)
    assert math.isnan(pair.chosen.tokens[0][1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not a file of pairs"), ("[]", "not a file of pairs"), ('{"step": 1}', "not a file of pairs")],
)
def test_a_damaged_file_is_named(run: RunDir, text: str, problem: str):
    (run.path / "pairs" / "bad.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        load_pairs(run, "pairs/bad.json")


def test_a_file_that_is_gone_or_elsewhere_is_refused(run: RunDir, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        load_pairs(run, "pairs/none.json")
    for path in ("../other/pairs.json", str(tmp_path / "x.json")):
        with pytest.raises(UserError, match="not in the run's folder"):
            load_pairs(run, path)

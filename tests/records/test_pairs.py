from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.records.pairs import PairsRecord, RewardedResponse, WorstPair, read_pairs, write_pairs
from localdpo.records.rundir import RunDir


def side(text: str, reward: float) -> RewardedResponse:
    return RewardedResponse(text, reward, ((text[:3], reward / 2), (text[3:], reward / 2)))


RECORD = PairsRecord(
    40,
    0.1,
    (
        WorstPair(7, "demo:preferences/valid", "Triage.", -0.24, side("SEV: 2", 0.16), side("SEV: 4", 0.4)),
        WorstPair(9, "demo:preferences/valid", "Again.", 0.1, side("é\n", 0.2), side("no", 0.1)),
    ),
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    assert write_pairs(run, RECORD) == "pairs/step-000040.json"
    return run


def test_what_is_written_is_read(run: RunDir):
    assert read_pairs(run, "pairs/step-000040.json") == RECORD


def test_a_file_that_changed_is_read_again(run: RunDir):
    path = run.path / "pairs" / "step-000040.json"
    assert read_pairs(run, "pairs/step-000040.json").pairs
    path.write_text('{"step": 40, "beta": 0.2, "pairs": []}')
    os.utime(path, (1, 1))
    assert read_pairs(run, "pairs/step-000040.json").beta == 0.2


def test_what_was_not_finite_is_no_number(run: RunDir):
    path = run.path / "pairs" / "odd.json"
    side = '{"text": "a", "reward": null, "tokens": [["a", null]]}'
    path.write_text(
        f'{{"step": 1, "beta": 0.1, "pairs": [{{"row": 1, "source": "s", "prompt": "p", "margin": null,'
        f' "chosen": {side}, "rejected": {side}}}]}}'
    )
    (pair,) = read_pairs(run, "pairs/odd.json").pairs
    assert math.isnan(pair.margin)
    assert math.isnan(pair.chosen.tokens[0][1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not a file of pairs"), ("[]", "not a file of pairs"), ('{"step": 1}', "not a file of pairs")],
)
def test_a_damaged_file_is_named(run: RunDir, text: str, problem: str):
    (run.path / "pairs" / "bad.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_pairs(run, "pairs/bad.json")


def test_a_file_that_is_gone_or_elsewhere_is_refused(run: RunDir, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(run, "pairs/none.json")
    for path in ("../other/pairs.json", str(tmp_path / "x.json")):
        with pytest.raises(UserError, match="not in the run's folder"):
            read_pairs(run, path)

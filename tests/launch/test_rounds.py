"""Rounds: what each is made from, when they end, and a series that was killed comes to the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_folders import ending_model, make_adapter

from localdpo.core.errors import UserError, UserErrors
from localdpo.evals.statistics import win_rate
from localdpo.launch import rounds
from localdpo.launch.rounds import plan_rounds, preview_lines
from localdpo.model.arrays import load_arrays
from localdpo.prefs.build import NoPairs
from localdpo.recipe.load import load_recipe
from localdpo.records.catalog import find_series
from localdpo.records.checkpoints import Verified
from localdpo.records.evaluations import RateEstimate, read_evaluation
from localdpo.records.rundir import find_run
from localdpo.records.series import (
    RoundResult,
    RoundsDir,
    SeriesRecord,
    cells,
    closing_lines,
    read_record,
    why_end,
    write_record,
)

HERE = Path(__file__).parent
ROOMS = ("", "prefs", "launch")
Z = 1.959963984540054
# In the order in which a series comes there; each child goes on where the one before was killed.
KILLS = (
    ["answer", 7],
    ["verdict", 5],
    ["step", 1],
    ["checkpoint", 1],
    ["answer", 6],
    ["round", 0],
    ["step", 0],
)


class Script:
    """The process of killed_rounds.py."""

    def __init__(self, model: Path, adapter: Path) -> None:
        tests = HERE.parent
        path = [str(tests / room) for room in ROOMS] + [os.environ.get("PYTHONPATH", str(tests.parent))]
        self.inputs = {"model": str(model), "adapter": str(adapter)}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "killed_rounds.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )

    def make(self, folder: Path, die: list[Any] | None = None, **others: Any) -> int:
        folder.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(
            json.dumps({"folder": str(folder), "die": die, **self.inputs, **others}),
            file=self.process.stdin,
            flush=True,
        )
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Script]:
    folder = tmp_path_factory.mktemp("models")
    model = ending_model(folder / "model", tiny_model)
    make_adapter(folder / "sft", model)
    script = Script(model, folder / "sft")
    yield script
    script.process.communicate()


@pytest.fixture(scope="module")
def series(script: Script, tmp_path_factory: pytest.TempPathFactory) -> RoundsDir:
    """Two rounds that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert script.make(folder, reference="first") == 0
    return RoundsDir(folder / "runs" / "series")


def files_of(series: RoundsDir) -> dict[str, bytes]:
    """What rounds leave, but for logs with times in them."""
    timed = {"events.jsonl", "lock", "verdicts.jsonl", "worker.log", "state.json", "manifest.json"}
    return {
        str(path.relative_to(series.path)): path.read_bytes()
        for path in sorted(series.path.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in timed
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_round_starts_from_the_policy_of_the_last(
    series: RoundsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(series.path.parent.parent)
    own = load_recipe(series.recipe)
    first, second = (load_recipe(run.recipe) for run in series.members())
    assert (first.adapter, first.reference_adapter) == (own.adapter, None)
    assert second.adapter == "runs/series/round-1/checkpoints/step-000003"
    assert second.reference == own.adapter
    assert (first.train.learning_rate, second.train.learning_rate) == (
        own.train.learning_rate,
        own.train.learning_rate / 2,
    )
    for run, recipe in zip(series.members(), (first, second), strict=True):
        assert recipe.data.train == f"runs/series/{run.name}/build/train.jsonl"
        assert run.status() == "finished"
        evaluation = read_evaluation(run.evaluations / "rounds.json")
        assert evaluation.source == "heldout.jsonl"
        rows = [json.loads(row) for row in (run.path / "build" / "train.jsonl").read_text().splitlines()]
        held_out = {row.id for row in evaluation.rows}
        assert held_out
        assert not held_out & {row["provenance"]["prompt"] for row in rows}
        assert find_run("runs", f"series/{run.name}").path == run.path.relative_to(Path.cwd())
    assert evaluation.labels == {"base": "base", "start": "round-1", "dpo": "DPO", "sft": "SFT"}
    duels = {(duel.first, duel.second): duel.win_rate for duel in evaluation.duels}
    record = read_record(series)
    assert [result.name for result in record.rounds] == ["round-1", "round-2"]
    last = record.rounds[-1]
    assert (last.last, last.first) == (duels["dpo", "start"], duels["dpo", "sft"])
    assert record.rounds[0].last == record.rounds[0].first
    assert last.pairs == len(rows)
    assert abs(last.kl - record.rounds[0].kl) > 1e-6
    assert find_series("runs", "series") is not None
    assert len(cells(last)) == 6


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_series_that_was_killed_anywhere_comes_to_the_same_files(
    series: RoundsDir, script: Script, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    codes = [script.make(folder, die, reference="first") for die in (*KILLS, None)]
    assert codes == [-9] * len(KILLS) + [0]
    killed = RoundsDir(folder / "runs" / "series")
    before, after = files_of(series), files_of(killed)
    assert before.keys() == after.keys()
    differing = [name for name in before if before[name] != after[name]]
    # After a resume the arrays of an optimizer may be in another order.
    assert {Path(name).suffix for name in differing} <= {".safetensors"}
    for name in differing:
        one, other = (load_arrays(folder.path / name) for folder in (series, killed))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one), name


# --- when a series ends ------------------------------------------------------------------------------------


def result(number: int, scores: list[float], kl: float = 1.0) -> RoundResult:
    estimate = rate_of(scores)
    return RoundResult(f"round-{number}", 10, estimate, estimate, kl, 0.1, 30.0, 29.0)


def rate_of(scores: list[float]) -> RateEstimate:
    rate = win_rate(scores)
    return RateEstimate(rate.value, rate.low, rate.high)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=120))
def test_a_series_goes_on_while_the_interval_lies_above_one_half(scores: list[float]) -> None:
    """Wilson's bounds are the rates p with (rate - p)^2 = z^2 p (1 - p) / n: here by NumPy's roots."""
    n, rate = len(scores), float(np.mean(scores))
    low = np.roots([1 + Z**2 / n, -(2 * rate + Z**2 / n), rate**2]).real.min()
    if abs(low - 0.5) > 1e-9:
        assert (why_end([result(1, scores)], 3, None) is None) == (low > 0.5)


def test_why_a_series_ends() -> None:
    better, even = [1.0] * 20, [0.5] * 20
    rounds = [result(1, better), result(2, better, kl=3.0)]
    assert why_end([], 3, None) is None
    assert why_end(rounds, 3, 4.0) is None
    assert why_end(rounds, 2, 4.0) == "all rounds are done"
    assert why_end(rounds, 3, 2.5) == "the KL of round-2 from the start is 3 nats, above rounds.max_kl 2.5"
    ended = why_end([*rounds, result(3, even)], 3, None)
    assert ended == "round-3 is not clearly better than round-2: it wins 50% (30% to 70%)"
    unjudged = RoundResult("round-1", 10, None, None, 0.0, None, 30.0, 29.0)
    assert why_end([unjudged], 3, None) == "round-1 is not clearly better than the start: it wins -"
    best = SeriesRecord(3, (*rounds, result(3, even))).best
    assert best is not None
    assert best.name == "round-2"
    assert SeriesRecord(3, (result(1, even),)).best is None


def test_patience_allows_rounds_that_are_not_better() -> None:
    better, even = [1.0] * 20, [0.5] * 20
    assert why_end([result(1, even)], 9, None, 2) is None
    assert why_end([result(1, even), result(2, better), result(3, even)], 9, None, 2) is None
    rounds = [result(1, better), result(2, even), result(3, even)]
    assert why_end(rounds, 9, None, 2) == (
        "round-3 is not clearly better than round-2: it wins 50% (30% to 70%); "
        "it is number 2 of such rounds in a row"
    )
    assert why_end(rounds, 3, None, 3) == "all rounds are done"


def test_the_best_round_is_better_than_the_start_too() -> None:
    better, even, worse = [1.0] * 20, [0.5] * 20, [0.0] * 20
    assert best_of([result(1, better), result(2, even), result(3, better)]) == "round-3"
    back = replace(result(3, better), first=rate_of(even))
    assert best_of([result(1, better), result(2, worse), back]) == "round-1"


def test_rounds_that_are_better_together_have_a_best_one() -> None:
    better, even = [1.0] * 20, [0.5] * 20
    together = replace(result(2, even), first=rate_of(better))
    assert best_of([result(1, even), together]) == "round-2"
    assert best_of([result(1, even), together, replace(together, name="round-3")]) == "round-2"
    assert closing_lines(SeriesRecord(9, (result(1, even),))) == ["no round is clearly better than the start"]


def best_of(rounds: list[RoundResult]) -> str | None:
    best = SeriesRecord(9, tuple(rounds)).best
    return None if best is None else best.name


def test_a_series_that_was_renamed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts, held_out = Path("prompts.jsonl"), Path("heldout.jsonl")
    prompts.write_text('{"prompt": "One?"}\n')
    held_out.write_text('{"prompt": "Two?"}\n')
    plan = planned(tmp_path, f"rounds.prompts={prompts}", f"eval.prompts={held_out}", "rounds.judge=mlx:x")
    series = RoundsDir.create("runs", "series", "model: x\n")
    hands = rounds.Hands(ask=lambda *asked: {}, train=lambda run: 7, note=lambda line: None)
    assert rounds.run_rounds(series, plan, 3, hands)[1] == 7
    assert rounds.run_rounds(series, plan, 3, hands)[1] == 7
    series.path.rename("runs/other")
    with pytest.raises(UserError, match=r"runs/other/round-1: begun as .*/runs/series/round-1, where its"):
        rounds.run_rounds(RoundsDir("runs/other"), plan, 3, hands)


def test_a_series_ends_where_nothing_is_left_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the judge all answers of a policy are alike: the same command would end there for ever."""
    prompts, held_out = tmp_path / "prompts.jsonl", tmp_path / "heldout.jsonl"
    prompts.write_text('{"prompt": "One?"}\n')
    held_out.write_text('{"prompt": "Two?"}\n')
    plan = planned(tmp_path, f"rounds.prompts={prompts}", f"eval.prompts={held_out}", "rounds.judge=mlx:x")
    monkeypatch.setattr(rounds, "require_checkpoint", lambda run, note: Verified(run.latest, {}))

    def ask(options: Any, make_plan: object, run: object) -> dict[str, Any]:
        raise NoPairs(f"{options.out}: no pair was kept of 1 prompt (tie: 1)")

    hands = rounds.Hands(ask=ask, train=lambda run: 1, note=lambda line: None)
    series = RoundsDir.create(tmp_path / "runs", "series", "model: x\n")
    with pytest.raises(NoPairs):
        rounds.run_rounds(series, plan, 3, hands)
    write_record(series, SeriesRecord(3, (result(1, [1.0] * 20),)))
    ended = f"{series.path}/round-2/build: no pair was kept of 1 prompt (tie: 1)"
    for _ in range(2):
        record, code = rounds.run_rounds(series, plan, 3, hands)
        assert (code, record.ended) == (0, ended)
        assert read_record(series) == record
        assert closing_lines(record) == [f"ended: {ended}", "best: round-1"]


# --- what is refused ---------------------------------------------------------------------------------------

SMALL = "model: demo:model\nadapter: demo:sft\ndata:\n  train: demo:preferences/train\n"


def planned(tmp_path: Path, *overrides: str) -> Any:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL)
    return plan_rounds(load_recipe(recipe, overrides))


def test_prompts_that_are_held_out_are_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "One?"}\n{"prompt": "Two  TIMES?"}\n')
    held_out = tmp_path / "heldout.jsonl"
    held_out.write_text('{"prompt": "three"}\n{"prompt": "two times?"}\n')
    named = (f"rounds.prompts={prompts}", f"eval.prompts={held_out}")
    with pytest.raises(UserError, match="has 1 prompt that the evaluation holds out, the first 'Two TIM"):
        planned(tmp_path, *named)
    prompts.write_text('{"prompt": "One?"}\n')
    with pytest.raises(UserError, match=r"rounds\.judge: missing"):
        planned(tmp_path, *named)
    with pytest.raises(UserError, match=r"rounds\.prompts: missing"):
        planned(tmp_path, f"eval.prompts={held_out}")
    with pytest.raises(UserError, match=r"eval\.prompts: missing"):
        planned(tmp_path, f"rounds.prompts={prompts}")
    with pytest.raises(UserErrors, match=r"rounds\.min_words=21: no answer of max_tokens 20 has"):
        planned(tmp_path, *named, "rounds.max_tokens=20", "rounds.min_words=21")


@pytest.mark.slow
def test_what_a_round_costs_is_said_before(tmp_path: Path) -> None:
    lines = preview_lines(
        planned(
            tmp_path,
            "rounds.prompts=demo:preferences/train",
            "rounds.limit=4",
            "eval.prompts=demo:prompts/heldout",
            "rounds.held_out=3",
            "rounds.judge=anthropic",
            "rounds.max_tokens=16",
            "rounds.missing_eos_penalty=4",
            "rounds.learning_rate_decay=0.5",
            "train.learning_rate=1e-4",
        ),
        tmp_path / "series",
        3,
    )
    assert lines[0] == "rounds: at most 3, with learning rates from 0.0001 down to 2.5e-05; each:"
    assert any(line.startswith("candidates: 8 of at most 16 tokens") for line in lines)
    assert "cut at the limit: judged too, never chosen; penalty 4" in lines
    assert sum(line.startswith("cost: at most $") and "$0.00" not in line for line in lines) == 2
    # Four models: of three duels of the run's own and one with the first start, both orders.
    assert "at most 24 questions to ask" in lines[-2]
    assert not (tmp_path / "series").exists()

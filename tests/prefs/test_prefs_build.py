"""`prefs build` on the tiny model: what it writes, keeps, refuses, asks and costs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import mlx.core as mx
import pytest
from building import FILES, PRICE, CountingJudge, maker, options_of, rows_in, write_prompts
from tiny_folders import ending_model, write_rows

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.encode import Limits
from localdpo.data.prompts import PromptRow
from localdpo.data.rows import read_examples
from localdpo.data.sources import open_source
from localdpo.judging import registry
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.cost import Budget
from localdpo.judging.panel import ConstitutionJudge
from localdpo.judging.registry import Hooks
from localdpo.judging.rubric import load_constitution
from localdpo.prefs import candidates, selection
from localdpo.prefs.build import run_build
from localdpo.prefs.build_plan import BuildOptions, plan_build, preview_lines
from localdpo.prefs.build_report import report_lines, winner
from localdpo.prefs.candidates import CandidateSource, candidate_seeds
from localdpo.prefs.selection import CandidateJudging
from localdpo.records.answers import AnswerRecord, read_answers

pytestmark = pytest.mark.slow

PROMPTS = 16


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_model(tmp_path_factory.mktemp("ending") / "model", tiny_model)


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> list[CountingJudge]:
    made: list[CountingJudge] = []
    monkeypatch.setattr(registry, "make_judge", maker(made))
    return made


@pytest.fixture
def options(tmp_path: Path, model: Path, sft_adapter: Path, judges: list[CountingJudge]) -> BuildOptions:
    return options_of(
        tmp_path / "build", write_prompts(tmp_path / "prompts.jsonl", PROMPTS), model, sft_adapter
    )


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, model: Path, sft_adapter: Path) -> bytes:
    """The candidates of `options`, for tests of what is made of them."""
    folder = tmp_path_factory.mktemp("made")
    asked = options_of(folder / "build", write_prompts(folder / "prompts.jsonl", PROMPTS), model, sft_adapter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "make_judge", maker([]))
        built(asked)
    return (asked.out / "candidates.jsonl").read_bytes()


@pytest.fixture
def begun(options: BuildOptions, made_once: bytes) -> BuildOptions:
    """A build whose candidates are there, and nothing else."""
    options.out.mkdir()
    (options.out / "candidates.jsonl").write_bytes(made_once)
    return options


def built(options: BuildOptions, **others: Any) -> dict[str, Any]:
    return run_build(plan_build(replace(options, **others)))


def texts(row: dict[str, Any]) -> tuple[str, str]:
    sides = (row["chosen"], row["rejected"])
    one, other = (side if isinstance(side, str) else side[0]["content"] for side in sides)
    return one, other


def pairs_of(out: Path) -> list[dict[str, Any]]:
    return rows_in(out / "train.jsonl") + rows_in(out / "valid.jsonl")


def test_pairs_hold_what_the_judge_prefers_and_where_they_are_from(options: BuildOptions) -> None:
    report = built(options)
    rows = pairs_of(options.out)
    assert len(rows) == report["pairs"]["kept"] > 3
    assert report["pairs"]["kept"] + sum(report["pairs"]["dropped"].values()) == PROMPTS
    prompts = {json.dumps(row["prompt"]): row["topic"] for row in rows_in(Path(options.prompts))}
    made = read_answers(options.out / "candidates.jsonl")
    for row in rows:
        chosen, rejected = texts(row)
        assert chosen.count("e") > rejected.count("e")
        assert row["topic"] == prompts[json.dumps(row["prompt"])]
        assert isinstance(row["chosen"], str) == isinstance(row["prompt"], str)
        origin = row["provenance"]
        assert origin["prompt"] == PromptRow(row["prompt"]).id
        place = [one["id"] for one in made.header.prompts].index(origin["prompt"])  # type: ignore[union-attr]
        assert made.records[place, origin["chosen"]["candidate"]].text == chosen
        assert made.records[place, origin["rejected"]["candidate"]].text == rejected
        assert [verdict["of"] for verdict in origin["verdicts"]] == [["1", "2"], ["2", "1"]]
        assert origin["usd"] == pytest.approx(2 * PRICE)
        assert origin["model"] == report["model"]["fingerprint"][:16]
        assert origin["adapter"] == report["adapter"]["fingerprint"][:16]
        assert origin["judge"] == "counting"


def test_the_pairs_are_data_to_train_on(options: BuildOptions) -> None:
    built(options, n=3)
    for name in ("train.jsonl", "valid.jsonl"):
        rows = rows_in(options.out / name)
        assert len(list(read_examples(open_source(str(options.out / name)), "pairs"))) == len(rows) > 0


def test_no_prompt_is_in_both_files(options: BuildOptions, tmp_path: Path) -> None:
    rows = rows_in(Path(options.prompts))
    twice = write_rows(tmp_path / "twice.jsonl", [*rows, *rows])
    built(options, prompts=str(twice), valid_fraction=0.4)
    sides = [
        {row["provenance"]["prompt"] for row in rows_in(options.out / name)}
        for name in ("train.jsonl", "valid.jsonl")
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_a_second_call_makes_and_asks_nothing_and_writes_the_same(
    begun: BuildOptions, judges: list[CountingJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    built(begun)
    before = {name: (begun.out / name).read_bytes() for name in FILES}
    monkeypatch.setattr(candidates, "load_base", lambda *a, **b: pytest.fail("a model is loaded"))
    judges.clear()
    built(begun)
    assert [judge.asked for judge in judges] == [[]]
    assert {name: (begun.out / name).read_bytes() for name in FILES} == before


def test_a_missing_key_is_said_before_anything_is_generated(
    options: BuildOptions, judges: list[CountingJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_key(self: CountingJudge) -> None:
        raise JudgeStopped("no key for counting")

    monkeypatch.setattr(CountingJudge, "find_key", no_key, raising=False)
    with pytest.raises(JudgeStopped, match="no key for counting"):
        built(options)
    assert not rows_in(options.out / "candidates.jsonl")[1:]
    monkeypatch.undo()
    monkeypatch.setattr(registry, "make_judge", maker(judges))
    built(options)
    monkeypatch.setattr(CountingJudge, "find_key", no_key, raising=False)
    assert built(options, valid_count=2)["pairs"]


def test_another_split_costs_nothing(begun: BuildOptions, judges: list[CountingJudge]) -> None:
    kept = built(begun)["pairs"]["kept"]
    judges.clear()
    with pytest.raises(UserError, match=rf"--valid-count {kept}: the build kept only {kept} pairs"):
        built(begun, valid_count=kept)
    assert built(begun, valid_count=2)["pairs"]["valid"] == 2
    report = built(begun, valid_count=0, keep=3)
    counts = {name: report["pairs"][name] for name in ("kept", "train", "valid", "beyond_keep")}
    assert counts == {"kept": 3, "train": 3, "valid": 0, "beyond_keep": kept - 3}
    assert not (begun.out / "valid.jsonl").exists()
    assert not any(judge.asked for judge in judges)


def test_a_folder_of_another_build_is_left_alone(begun: BuildOptions) -> None:
    built(begun)
    with pytest.raises(UserError, match=r"another build \(changed: seed\)"):
        plan_build(replace(begun, seed=1))
    with pytest.raises(UserError, match=r"another build \(changed: n, temperatures\)"):
        plan_build(replace(begun, n=3))
    with pytest.raises(UserError, match=r"another build \(changed: adapter\)"):
        plan_build(replace(begun, source=replace(begun.source, adapter=None)))


def test_three_candidates_are_scored_best_against_low(options: BuildOptions) -> None:
    report = built(options, n=3)
    made = read_answers(options.out / "candidates.jsonl").records
    kept = {row["provenance"]["prompt"]: row for row in pairs_of(options.out)}
    assert len(kept) == report["pairs"]["kept"] > 3
    for i, prompt in enumerate(rows_in(Path(options.prompts))):
        names, _ = selection.usable({name: made[i, name] for name in "123"})
        scores = {name: float(min(5, 1 + made[i, name].text.count("e"))) for name in names}
        lengths = {name: made[i, name].tokens for name in names}
        found = selection.by_scores(i, scores, lengths) if len(names) > 1 else ""
        row = kept.pop(PromptRow(prompt["prompt"]).id, None)
        if isinstance(found, str):
            assert row is None
            continue
        assert row is not None
        assert (row["score_chosen"], row["score_rejected"]) == found.scores
        assert row["margin"] == row["score_chosen"] - row["score_rejected"] > 0
        assert row["provenance"]["chosen"]["candidate"] == found.chosen
    assert not kept
    assert report["margins"]["lowest"] > 0
    tokens = [report["pairs"][f"{side}_tokens"] for side in ("chosen", "rejected")]
    assert tokens == [
        fmean(row["provenance"][side]["tokens"] for row in pairs_of(options.out))
        for side in ("chosen", "rejected")
    ]


def test_orders_that_disagree_make_no_pair(
    begun: BuildOptions, judges: list[CountingJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "make_judge", maker(judges, choose=lambda one, two: "first"))
    with pytest.raises(UserError, match=rf"no pair was kept of {PROMPTS} prompts \(.*orders disagree: \d+"):
        built(begun)
    assert not (begun.out / "train.jsonl").exists()
    report = json.loads((begun.out / "report.json").read_text())
    assert report["pairs"]["dropped"][selection.FLIPPED] == len(judges[0].asked) / 2


def test_a_build_without_a_pair_keeps_the_files_of_an_earlier_one(
    begun: BuildOptions, judges: list[CountingJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    built(begun)
    files = {name: (begun.out / name).read_bytes() for name in ("train.jsonl", "valid.jsonl")}
    (begun.out / "verdicts.jsonl").unlink()
    monkeypatch.setattr(registry, "make_judge", maker(judges, choose=lambda one, two: "first"))
    with pytest.raises(UserError, match=r"no pair was kept .*; train\.jsonl in it is of an earlier build$"):
        built(begun)
    assert {name: (begun.out / name).read_bytes() for name in files} == files


def test_files_that_no_build_wrote_are_not_replaced(
    options: BuildOptions, judges: list[CountingJudge]
) -> None:
    options.out.mkdir()
    own = {name: options.out / name for name in ("train.jsonl", "valid.jsonl")}
    for path in own.values():
        path.write_text("mine\n")
    with pytest.raises(UserErrors) as told:
        built(options)
    assert [str(error) for error in told.value.errors] == [
        f"{path}: not as a build wrote it; move it away, and run this again" for path in own.values()
    ]
    assert all(path.read_text() == "mine\n" for path in own.values())
    # Nothing was generated or asked for.
    assert [path.name for path in sorted(options.out.iterdir())] == list(own)
    assert not any(judge.asked for judge in judges)


@pytest.mark.parametrize("content", ['{"accuracy": 0.9}', '{"files": 1}', "[]", "half a rep", "[" * 9999])
def test_a_report_that_no_build_wrote_is_not_replaced(
    content: str, options: BuildOptions, judges: list[CountingJudge]
) -> None:
    options.out.mkdir()
    report = options.out / "report.json"
    report.write_text(content)
    with pytest.raises(UserError, match=r"report\.json: not as a build wrote it; move it away"):
        built(options)
    assert report.read_text() == content
    assert list(options.out.iterdir()) == [report]


def test_pairs_that_were_edited_by_hand_are_not_replaced(begun: BuildOptions) -> None:
    first = built(begun)
    train, valid = (begun.out / name for name in ("train.jsonl", "valid.jsonl"))
    edited = train.read_text() + "\n"
    train.write_text(edited)
    before = valid.read_bytes()
    with pytest.raises(UserErrors, match=r"train\.jsonl: not as a build wrote it; move it away"):
        built(begun, valid_fraction=0.5)
    assert (train.read_text(), valid.read_bytes()) == (edited, before)
    train.unlink()
    again = built(begun, valid_fraction=0.5)
    assert again["files"] != first["files"]
    assert again["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (train, valid)
    }


def test_scores_beside_the_choice(begun: BuildOptions, judges: list[CountingJudge]) -> None:
    report = built(begun, scores=True)
    rows = pairs_of(begun.out)
    assert all(row["margin"] > 0 for row in rows)
    assert all(len(row["provenance"]["verdicts"]) == 4 for row in rows)
    scored = [judge for judge in judges if judge.identity["mode"] == "score"]
    # Only the answers of pairs that stand are scored.
    dropped = report["pairs"]["dropped"].get(selection.CONTRADICTED, 0)
    assert {len(judge.asked) for judge in scored} == {2 * (len(rows) + dropped)}


def test_the_budget_holds_and_a_later_call_goes_on(begun: BuildOptions, tmp_path: Path) -> None:
    whole = built(begun, out=tmp_path / "whole")
    limit = 7.5 * PRICE
    with pytest.raises(JudgeStopped, match="limit"):
        built(begun, max_usd=limit)
    told = rows_in(begun.out / "verdicts.jsonl")
    assert sum(row["verdict"]["usage"]["usd"] for row in told) <= limit
    assert not (begun.out / "train.jsonl").exists()
    budget = Budget()
    assert run_build(plan_build(begun), budget=budget) == whole
    assert budget.spent == pytest.approx(PRICE * (whole["verdicts"]["used"] - len(told)))


def test_the_preview_counts_what_may_be_asked_of_answers_with_many_words(
    options: BuildOptions, judges: list[CountingJudge]
) -> None:
    for n, questions in ((2, 2 * PROMPTS), (4, 4 * PROMPTS)):
        asked = replace(options, n=n, temperatures=(1.0,), min_words=options.max_tokens)
        lines = preview_lines(plan_build(asked))
        assert f"at least {options.max_tokens} words and at most {options.max_tokens} tokens" in lines[1]
        assert f"at most {questions} questions to ask" in lines[2]


def test_answers_that_are_too_short_are_counted_where_no_pair_is_left(options: BuildOptions) -> None:
    with pytest.raises(UserError, match=r"no pair was kept .* left out: .*least number of words: \d+"):
        built(options, n=3, temperatures=(1.0,), min_words=options.max_tokens)
    report = json.loads((options.out / "report.json").read_bytes())
    assert report["drawing"]["min_words"] == options.max_tokens
    with pytest.raises(UserError, match="--min-words 99: no answer of --max-tokens"):
        plan_build(replace(options, max_tokens=98, min_words=99))


def test_the_preview_writes_and_asks_nothing(options: BuildOptions, judges: list[CountingJudge]) -> None:
    lines = preview_lines(plan_build(options))
    assert lines[1].startswith(f"candidates: {2 * PROMPTS} of at most 12 tokens at temperature 1; ")
    assert f"at most {2 * PROMPTS} questions to ask, 0 answered already" in lines[2]
    assert f"at most ${2 * PROMPTS * PRICE:.2f}, were every answer" in lines[3]
    assert not options.out.exists()
    used = built(options)["verdicts"]["used"]
    judges.clear()
    lines = preview_lines(plan_build(options))
    assert lines[1].endswith("; 0 to generate")
    assert f"at most 0 questions to ask, {used} answered already" in lines[2]
    assert not any(judge.asked for judge in judges)


PENALTY = 4.0


@pytest.mark.parametrize(("n", "scores"), [(2, None), (2, True), (3, None)])
def test_answers_that_were_cut_are_judged_and_only_rejected(
    n: int, scores: bool | None, options: BuildOptions
) -> None:
    report = built(options, n=n, scores=scores, missing_eos_penalty=PENALTY)
    made = read_answers(options.out / "candidates.jsonl")
    rows, places = pairs_of(options.out), [one["id"] for one in made.header.prompts]  # type: ignore[union-attr]
    rejected_cut = 0
    for row in rows:
        origin = row["provenance"]
        place = places.index(origin["prompt"])
        chosen, rejected = (made.records[place, origin[side]["candidate"]] for side in ("chosen", "rejected"))
        assert chosen.finished
        assert row.get("rejected_finish_reason") == (None if rejected.finished else "length")
        assert texts(row)[1] == selection.text_of(rejected)
        assert origin["missing_eos_penalty"] == PENALTY
        rejected_cut += not rejected.finished
        if n == 3 or scores:
            wanted = [min(5, 1 + text.count("e")) for text in texts(row)]
            wanted[1] -= 0 if rejected.finished else PENALTY
            assert [row["score_chosen"], row["score_rejected"]] == wanted
            assert row["margin"] == wanted[0] - wanted[1] > 0
    assert report["pairs"]["rejected_cut"] == rejected_cut > 0
    judged = {
        (places.index(row["provenance"]["prompt"]), name)
        for row in rows
        for verdict in row["provenance"]["verdicts"]
        for name in verdict["of"]
    }
    assert report["candidates"]["cut"] >= sum(not made.records[key].finished for key in judged) > 0
    assert report["candidates"]["cut"] + report["candidates"]["not_judged"].get(selection.CUT, 0) == sum(
        not answer.finished and bool(selection.text_of(answer).strip()) for answer in made.records.values()
    )
    lines = report_lines(report)
    assert f"  {report['candidates']['cut']} judged that were cut at the limit of tokens" in lines
    assert f"  {rejected_cut} have a rejected answer that was cut" in lines
    # Training learns no end of them.
    read = [
        pair
        for name in ("train.jsonl", "valid.jsonl")
        for _, pair in read_examples(open_source(str(options.out / name)), "pairs")
    ]
    assert sum(pair.ended == (True, False) for pair in read) == rejected_cut  # type: ignore[union-attr]


def test_a_penalty_asks_about_more_answers_and_generates_none(
    begun: BuildOptions, judges: list[CountingJudge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = built(begun)
    files = {name: (begun.out / name).read_bytes() for name in FILES}
    assert b"missing_eos" not in files["report.json"]
    assert b"finish_reason" not in files["train.jsonl"]
    monkeypatch.setattr(candidates, "load_base", lambda *a, **b: pytest.fail("a model is loaded"))
    asked = replace(begun, missing_eos_penalty=PENALTY)
    lines = preview_lines(plan_build(asked))
    assert lines[2] == "cut at the limit: judged too, never chosen; penalty 4"
    assert any(line.startswith("missing_eos_penalty: without scores") for line in lines)
    judges.clear()
    with pytest.raises(JudgeStopped, match="limit"):
        built(asked, max_usd=2.5 * PRICE)
    report = built(asked)
    more = sum(len(judge.asked) for judge in judges)
    assert f"at most {more} questions to ask, {plain['verdicts']['used']} answered already" in lines[3]
    assert report["verdicts"]["used"] == plain["verdicts"]["used"] + more
    assert report["pairs"]["kept"] > plain["pairs"]["kept"]
    # Killed or not, in an old folder or a new one, it comes to the same.
    new = tmp_path / "new"
    new.mkdir()
    (new / "candidates.jsonl").write_bytes(files["candidates.jsonl"])
    built(asked, out=new)
    assert all((new / name).read_bytes() == (begun.out / name).read_bytes() for name in FILES)
    # And back again.
    built(begun)
    assert {name: (begun.out / name).read_bytes() for name in FILES} == files


def cut(*answers: tuple[str, bool]) -> dict[str, AnswerRecord]:
    """Candidates by name, of text and whether they ended."""
    return {
        str(k + 1): AnswerRecord(0, str(k + 1), text, 3, ended) for k, (text, ended) in enumerate(answers)
    }


def test_nothing_is_asked_about_prompts_whose_answers_were_all_cut(options: BuildOptions) -> None:
    answers = [
        cut(("a", False), ("b", False), ("c", False)),
        cut(("a", False), ("b", True), ("c", False)),
        cut(("a", False), ("", True), ("a", True)),
    ]
    plan = plan_build(replace(options, n=3, limit=3, missing_eos_penalty=PENALTY))
    judging = CandidateJudging(plan, answers)
    assert judging.ready == {1: ["1", "2", "3"]}
    assert judging.outcome.cut == 2
    assert judging.outcome.candidates == {selection.CUT: 4, selection.EMPTY: 1, selection.SAME: 1}
    revised = plan_build(replace(options, revise=True, limit=2, missing_eos_penalty=PENALTY))
    both = [
        {"revision": AnswerRecord(i, "revision", "x", 3, not i), "1": AnswerRecord(i, "1", "y", 3, bool(i))}
        for i in range(2)
    ]
    # A revision that was cut could not be chosen.
    assert CandidateJudging(revised, both).ready == {0: ["revision", "1"]}


def test_of_two_that_training_would_not_tell_apart_the_one_that_was_cut_goes(options: BuildOptions) -> None:
    source = replace(options.source, limits=Limits(max_length=48))
    plan = plan_build(replace(options, n=3, limit=1, source=source, missing_eos_penalty=PENALTY))
    long = "The answer is good. " * 20
    judging = CandidateJudging(plan, [cut((f"{long}yes", False), (f"{long}no", True), ("no", True))])
    assert judging.ready == {0: ["2", "3"]}
    assert judging.outcome.candidates == {selection.SAME_WHEN_CUT: 1}


def test_callbacks_count_up_to_what_was_announced(options: BuildOptions) -> None:
    seen: Counter[str] = Counter()
    announced: list[int] = []
    hooks = Hooks(
        on_answer=lambda record: seen.update(["candidate"]),
        on_questions=announced.append,
        on_verdict=lambda question, verdict: seen.update(["verdict"]),
    )
    for _ in range(2):
        seen.clear()
        run_build(plan_build(options), hooks=hooks)
        assert seen["candidate"] == 2 * PROMPTS
        assert seen["verdict"] == announced[-1]


def test_candidates_are_those_of_their_temperature_and_seed(options: BuildOptions) -> None:
    report = built(options, temperatures=(0.0, 1.5))
    made = read_answers(options.out / "candidates.jsonl")
    assert made.header is not None
    assert [one["temperature"] for one in made.header.contestants] == [0.0, 1.5]
    assert [row["temperature"] for row in report["temperatures"]] == [0.0, 1.5]
    for row in report["temperatures"]:
        assert row["wins"] + row["losses"] == report["pairs"]["kept"]
    assert report["winner"] in report_lines(report)
    other = read_answers(options.out / "candidates.jsonl").records
    built(options, out=options.out.with_name("again"), temperatures=(0.0, 1.5), seed=1)
    again = read_answers(options.out.with_name("again") / "candidates.jsonl").records
    assert all(other[i, "1"].text == again[i, "1"].text for i in range(PROMPTS))
    assert any(other[i, "2"].text != again[i, "2"].text for i in range(PROMPTS))


def test_every_candidate_has_noise_of_its_own() -> None:
    rows = [PromptRow("a"), PromptRow("b"), PromptRow("a")]
    seeds = [candidate_seeds(rows, seed, name) for seed in (0, 1) for name in ("1", "2", "critique")]
    assert len({seed for of_candidate in seeds for seed in of_candidate}) == 18


def test_what_wins_is_said_with_its_interval() -> None:
    def row(temperature: float, wins: int, losses: int) -> dict[str, Any]:
        return {"temperature": temperature, "wins": wins, "losses": losses}

    assert winner([row(1.0, 0, 0)]) is None
    assert winner([row(0.7, 0, 0), row(1.0, 0, 0)]) == "no pair is between two temperatures"
    # Wilson by hand for 80 of 100: (0.8 + 0.019207) / 1.038415 -+ 0.0777.
    said = winner([row(0.7, 80, 20), row(1.0, 20, 80)])
    assert said == "temperature 0.7 wins: 80 of 100 pairs with another (71% to 87%)"
    said = winner([row(0.7, 5, 6), row(1.0, 6, 5)])
    assert said is not None
    assert said.startswith("no temperature clearly wins; 1 does best: 6 of 11 pairs")


def given(answers: list[tuple[str, str]]) -> list[dict[str, AnswerRecord]]:
    return [
        {str(k + 1): AnswerRecord(i, str(k + 1), text, 3, True) for k, text in enumerate(two)}
        for i, two in enumerate(answers)
    ]


def test_answers_that_training_would_not_tell_apart_are_dropped(
    options: BuildOptions, tmp_path: Path
) -> None:
    question = "What is the answer to question number 7?"
    prompts = write_rows(tmp_path / "two.jsonl", [{"prompt": question}, {"prompt": question * 40}])
    source = replace(options.source, limits=Limits(max_length=48))
    plan = plan_build(replace(options, prompts=str(prompts), source=source))
    long = "The answer is good. " * 20
    judging = CandidateJudging(plan, given([(f"{long}yes", f"{long}no"), ("yes", "no")]))
    assert judging.ready == {}
    assert judging.outcome.pairs[selection.SAME_WHEN_CUT] == 1
    assert sum(judging.outcome.pairs.values()) == 2
    free = plan_build(replace(options, prompts=str(prompts)))
    free_judging = CandidateJudging(free, given([(f"{long}yes", f"{long}no"), ("yes", "no")]))
    assert free_judging.ready == {0: ["1", "2"], 1: ["1", "2"]}


@dataclass(frozen=True)
class Revised:
    """A build of revisions: its report, and the prompts that were encoded, in order."""

    options: BuildOptions
    report: dict[str, Any]
    asked: list[Any]


@pytest.fixture(scope="module")
def revised(tmp_path_factory: pytest.TempPathFactory, model: Path, sft_adapter: Path) -> Revised:
    folder = tmp_path_factory.mktemp("revised")
    prompts = write_prompts(folder / "prompts.jsonl", PROMPTS)
    options = options_of(folder / "build", prompts, model, sft_adapter, revise=True, max_tokens=24)
    asked: list[Any] = []
    encode = candidates.encode_prompt

    def watched(tokenizer: Any, prompt: Any, template: Any, **options: Any) -> Any:
        asked.append(prompt)
        return encode(tokenizer, prompt, template, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "make_judge", maker([]))
        patch.setattr(candidates, "encode_prompt", watched)
        return Revised(options, built(options), asked)


def test_the_revised_answer_is_chosen_when_the_judge_agrees(revised: Revised) -> None:
    rows = pairs_of(revised.options.out)
    dropped = revised.report["pairs"]["dropped"]
    assert len(rows) + sum(dropped.values()) == PROMPTS
    assert dropped[selection.NOT_REVISED] > 0
    assert len(rows) > 0
    for row in rows:
        origin = row["provenance"]
        assert (origin["chosen"]["candidate"], origin["rejected"]["candidate"]) == ("revision", "1")
    assert revised.report["winner"] is None
    made = read_answers(revised.options.out / "candidates.jsonl")
    assert len(made.records) == 3 * PROMPTS


def test_a_revision_follows_from_the_critique(revised: Revised) -> None:
    made = read_answers(revised.options.out / "candidates.jsonl").records
    first, last = revised.asked[:PROMPTS], revised.asked[-4:]
    for i, messages in zip(range(PROMPTS - 4, PROMPTS), last, strict=True):
        row = PromptRow(first[i])
        told = [row.text, made[i, "1"].text, made[i, "critique"].text]
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
        assert [message["content"] for message in (messages[0], messages[1], messages[3])] == told
        constitution = load_constitution("assistant")
        principle = constitution.principles[constitution.drawn(row.id)].text
        assert principle in messages[2]["content"]
        assert principle in messages[4]["content"]


def test_the_principle_is_the_one_that_the_judge_is_asked_about() -> None:
    constitution = load_constitution("assistant")

    def build(rubric: Any) -> CountingJudge:
        return CountingJudge(rubric.principle)

    judge = ConstitutionJudge(constitution, "pairwise", "sample", build)
    for number in range(20):
        (member,) = judge.members_for(Question(str(number), "q", ("a", "b")))
        assert member.identity["mode"] == constitution.principles[constitution.drawn(str(number))].id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, r"-n: expected 2 candidates or more, got 1"),
        ({"missing_eos_penalty": 0.0}, r"--missing-eos-penalty 0: expected a number above 0"),
        ({"missing_eos_penalty": float("inf")}, r"--missing-eos-penalty inf: expected a number above 0"),
        ({"revise": True, "n": 2}, r"--revise: one answer a prompt"),
        ({"temperatures": ()}, r"--temperatures: expected numbers"),
        ({"temperatures": (-1.0,)}, r"--temperatures: expected numbers"),
        ({"temperatures": (1.0, 0.5, 0.2)}, r"--temperatures: 3 for 2 candidate"),
        ({"temperatures": (0.0,)}, r"--temperatures: at 0 every candidate is the same"),
        ({"n": 3, "scores": False}, r"--no-scores: of more than two"),
        ({"rubrics": ("quality", "quality")}, r"--rubric quality: there is one for mode score already"),
        ({"n": 3, "rubrics": ("helpful",)}, r"--rubric helpful: nothing is asked in its mode, pairwise"),
        ({"judge": None}, r"no judge: name one"),
        ({"judge": "rules"}, r"--judge rules: rules checks the demo's incident reports"),
        ({"source": CandidateSource("nowhere/at/all")}, r"model nowhere/at/all: no such folder"),
        ({"prompts": "nothing.jsonl"}, r"nothing.jsonl: no such file"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(
    options: BuildOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_build(replace(options, **changes))
    assert not options.out.exists()


def test_columns_that_would_make_another_format_are_refused(options: BuildOptions, tmp_path: Path) -> None:
    odd = {"question": "r"}, {"responses": ["a"], "pairs": []}
    messages = (
        "beside prompt, question would look like another",
        "with its columns .* would look like responses",
    )
    for columns, message in zip(odd, messages, strict=True):
        prompts = write_rows(tmp_path / "odd.jsonl", [{"prompt": "q", **columns}])
        with pytest.raises(UserError, match=f"odd.jsonl: {message}"):
            plan_build(replace(options, prompts=str(prompts)))


def test_a_file_is_no_folder(options: BuildOptions) -> None:
    with pytest.raises(UserError, match="is a file; --out names a folder"):
        plan_build(replace(options, out=Path(options.prompts)))


def test_generation_leaves_the_random_state_alone(options: BuildOptions) -> None:
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(3)
    built(options)
    assert mx.random.uniform(shape=(4,)).tolist() == expected

"""The checks find every planted defect at its row, and nothing in clean data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clean_pairs import Row, clean_rows, text, write

from localdpo.core.errors import UserError
from localdpo.data.encode import Limits
from localdpo.prefs.check import (
    CHECKS,
    FAMILIES,
    CheckReport,
    as_object,
    check,
    closing_lines,
    finding_lines,
    summary_lines,
)
from localdpo.prefs.checks.base import LEVELS, CheckSettings, Finding
from localdpo.prefs.settings import open_tokenizer

pytestmark = pytest.mark.slow

REAL_PAIRS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpaca_eval_pairs.jsonl"
ROWS = 1000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_tokenizer("demo:model")


@pytest.fixture(scope="module")
def valid_rows() -> list[Row]:
    """Prompts of an evaluation that the clean data shares nothing with."""
    return clean_rows(60, seed=99)


@pytest.fixture
def settings(tokenizer: Any, valid_rows: list[Row], tmp_path: Path) -> CheckSettings:
    """Everything that needs no model is checked."""
    valid = write(tmp_path / "valid.jsonl", [{"prompt": row["prompt"]} for row in valid_rows])
    return CheckSettings(tokenizer=tokenizer, limits=Limits(2000), against=[valid])


def named(report: CheckReport) -> dict[str, Finding]:
    return {result.check.name: result for result in report.results}


def test_nothing_is_invented_on_clean_data(settings: CheckSettings, tmp_path: Path) -> None:
    report = check(write(tmp_path / "pairs.jsonl", clean_rows(ROWS)), settings)
    assert [(result.check.name, result.message) for result in report.results] == []
    assert not report.failed
    assert (report.facts["rows"], report.facts["pairs"], report.facts["prompts"]) == (ROWS, ROWS, ROWS)


def plants(valid: list[Row], mark: str = "") -> dict[str, Callable[[list[Row | Any]], list[int]]]:
    """For each check that points at rows, what plants its defect: from the rows to the numbers it changed."""
    rng = random.Random(5)

    def change(*places: int, **columns: Callable[[Row], Any]) -> Callable[[list[Any]], list[int]]:
        def plant(rows: list[Any]) -> list[int]:
            for place in places:
                rows[place] = {**rows[place], **{name: make(rows[place]) for name, make in columns.items()}}
            return list(places)

        return plant

    def cycle(rows: list[Any]) -> list[int]:
        a, b, c = (text(rng, 30) for _ in range(3))
        for place, (better, worse) in zip((300, 301, 302), ((a, b), (b, c), (c, a)), strict=True):
            rows[place] = {"prompt": rows[300]["prompt"], "chosen": better, "rejected": worse}
        return [300, 301, 302]

    def contradiction(rows: list[Any]) -> list[int]:
        rows[310] = {**rows[311], "chosen": rows[311]["rejected"], "rejected": rows[311]["chosen"]}
        return [310, 311]

    def copied(source: int, target: int, *columns: str) -> Callable[[list[Any]], list[int]]:
        def plant(rows: list[Any]) -> list[int]:
            rows[target] = {**rows[target], **{name: rows[source][name] for name in columns}}
            return [target]

        return plant

    def nearly(place: int, source: int, column: str, target: str) -> Callable[[list[Any]], list[int]]:
        def plant(rows: list[Any]) -> list[int]:
            rows[place] = {**rows[place], target: rows[source][column].lower().replace(".", " indeed!")}
            return [place]

        return plant

    def broken(rows: list[Any]) -> list[int]:
        rows[500], rows[501], rows[502] = (
            '{"prompt": "q",',
            {"prompt": "q", "chosen": 3, "rejected": ""},
            "[1]",
        )
        return [500, 501, 502]

    def unusable(rows: list[Any]) -> list[int]:
        rows[510] = {**rows[510], "chosen-rating": 3, "rejected-rating": 3.0}
        return [510]

    def against(rows: list[Any]) -> list[int]:
        rows[520] = {**rows[520], "score_chosen": 2.5, "score_rejected": 7}
        return [520]

    run = " ".join(valid[3]["prompt"].split()[:14])
    return {
        "cut-rejected": change(90, 91, rejected_finish_reason=lambda row: "length"),
        "unreadable-rows": broken,
        "unusable-rows": unusable,
        "scores-against-order": against,
        "empty-answers": change(100, 101, rejected=lambda row: " \n"),
        "empty-prompts": change(110, prompt=lambda row: ""),
        "identical-answers": change(120, rejected=lambda row: row["chosen"]),
        "same-but-for-space": change(130, rejected=lambda row: row["chosen"].upper().replace(" ", "\n ")),
        "contradictory-pairs": contradiction,
        "cycles": cycle,
        "duplicate-pairs": copied(400, 401, "prompt", "chosen", "rejected"),
        "repeated-prompts": copied(410, 411, "prompt"),
        "repeated-answers": copied(420, 421, "rejected"),
        "near-duplicate-prompts": nearly(431, 430, "prompt", "prompt"),
        "near-duplicate-answers": nearly(441, 440, "chosen", "rejected"),
        "overlap-exact": change(600, prompt=lambda row: valid[0]["prompt"]),
        "overlap-normalised": change(610, prompt=lambda row: valid[1]["prompt"].upper().replace(" ", ", ")),
        "overlap-13-gram": change(620, prompt=lambda row: f"{row['prompt']} {run} {row['prompt'][::-1]}"),
        "overlap-fuzzy": change(
            630, prompt=lambda row: valid[2]["prompt"].replace(valid[2]["prompt"].split()[12], "x", 1)
        ),
        "special-tokens": change(700, chosen=lambda row: row["chosen"] + mark),
        "template-markers": change(710, 711, rejected=lambda row: "[INST] " + row["rejected"]),
        "language-mismatch": change(
            720, rejected=lambda row: "Это ответ на другом языке, и в нём нет ни одного слова латиницей."
        ),
        "lost-when-cut": change(730, prompt=lambda row: text(rng, 3000)),
        "boundary-merges": change(740),
        "not-rendered": change(750),
        "left-out": change(770),
        "truncated": change(760),
    }


FLAGGING = [check_.name for check_ in CHECKS if check_.rows]
# These need another tokenizer or many rows, and have tests of their own below.
ELSEWHERE = ("boundary-merges", "left-out", "not-rendered", "truncated")


def test_every_check_that_flags_rows_has_a_plant() -> None:
    assert sorted(plants(clean_rows(10))) == sorted(FLAGGING)


@pytest.mark.parametrize("name", [name for name in FLAGGING if name not in ELSEWHERE])
@pytest.mark.every(4)
def test_a_planted_defect_is_found_at_its_row(
    name: str, settings: CheckSettings, valid_rows: list[Row], tmp_path: Path
) -> None:
    rows: list[Any] = clean_rows(ROWS)
    assert settings.tokenizer is not None
    planted = plants(valid_rows, settings.tokenizer.eos_token)[name](rows)
    if name not in ("special-tokens", "lost-when-cut"):
        settings = replace(settings, tokenizer=None)
    report = check(write(tmp_path / "pairs.jsonl", rows), settings)
    found = named(report)
    assert sorted(found[name].numbers.tolist()) == sorted(planted)
    shown = {row for example in found[name].examples for row in example.numbers}
    assert {row + 1 for row in planted} <= shown
    # Some defects are two at once: an exact copy has the same prompt too.
    also = {
        "cycles": {"repeated-prompts", "repeated-answers"},
        "contradictory-pairs": {"repeated-prompts"},
        "duplicate-pairs": {"repeated-prompts"},
    }
    assert set(found) - {name} <= also.get(name, set())
    assert report.failed == (found[name].check.level == "error")


def test_all_defects_are_found_in_one_file(
    settings: CheckSettings, valid_rows: list[Row], tmp_path: Path
) -> None:
    rows: list[Any] = clean_rows(ROWS)
    assert settings.tokenizer is not None
    make = plants(valid_rows, settings.tokenizer.eos_token)
    planted = {name: plant(rows) for name, plant in make.items() if name not in ELSEWHERE}
    found = named(check(write(tmp_path / "pairs.jsonl", rows), settings))
    for name, places in planted.items():
        assert set(places) <= set(found[name].numbers.tolist()), name
    extra = {name: len(set(found[name].numbers.tolist()) - set(planted[name])) for name in planted}
    # The copies, the contradiction and the circle share a prompt with the rows that they were made from.
    assert {name: count for name, count in extra.items() if count} == {"repeated-prompts": 4}


def test_longer_chosen_answers_are_a_bias(tmp_path: Path) -> None:
    rows = clean_rows(200)
    for row in rows[:130]:
        row["chosen"], row["rejected"] = sorted((row["chosen"], row["rejected"]), key=len, reverse=True)
    for row in rows[130:]:
        row["chosen"], row["rejected"] = sorted((row["chosen"], row["rejected"]), key=len)
    report = check(write(tmp_path / "pairs.jsonl", rows))
    bias = report.facts["chosen_longer"]
    assert bias["longer"] + bias["shorter"] + bias["equal"] == 200
    assert bias["share"] == pytest.approx(0.65, abs=0.02)
    assert sum(one["count"] for one in bias["histogram"]) == 200
    assert list(named(report)) == ["length-bias"]
    # The other way round it is the rejected answer that is longer.
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    (result,) = check(write(tmp_path / "swapped.jsonl", swapped)).results
    assert "the rejected answer is the longer one in 65%" in result.message


def test_markdown_on_one_side_is_a_skew(tmp_path: Path) -> None:
    rows = clean_rows(200)
    for row in rows[:60]:
        row["chosen"] = f"**{row['chosen']}**"
    report = check(write(tmp_path / "pairs.jsonl", rows))
    assert list(named(report)) == ["markdown-skew"]
    assert report.facts["markdown"]["bold"] == [0.3, 0.0]
    # As much of it on the other side is none.
    for row in rows[60:120]:
        row["rejected"] = f"**{row['rejected']}**"
    assert check(write(tmp_path / "pairs.jsonl", rows)).results == ()


def test_rows_cut_at_the_limit_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    rows = clean_rows(100)
    for row in rows[:7]:
        row["chosen"] += " and so on" * 900
    path = write(tmp_path / "pairs.jsonl", rows)
    report = check(path, CheckSettings(tokenizer=tokenizer, limits=Limits(2500)))
    assert named(report)["truncated"].numbers.tolist() == list(range(7))
    assert report.facts["truncated"] == 7
    # A few long rows are what a limit is for.
    write(tmp_path / "pairs.jsonl", rows[3:])
    report = check(path, CheckSettings(tokenizer=tokenizer, limits=Limits(2500)))
    assert report.facts["truncated"] == 4
    assert "truncated" not in named(report)


def test_rows_that_the_template_refuses_are_errors(tmp_path: Path) -> None:
    strict = open_tokenizer("demo:model")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    strict.chat_template = refusal + str(strict.chat_template)
    rows = clean_rows(3)
    rows[1]["prompt"] = [{"role": "system", "content": "s"}, {"role": "user", "content": rows[1]["prompt"]}]
    report = check(write(tmp_path / "p.jsonl", rows), CheckSettings(tokenizer=strict))
    assert named(report)["not-rendered"].numbers.tolist() == [1]
    assert "No system role" in named(report)["not-rendered"].examples[0].note


def test_what_the_template_leaves_out_is_named(tmp_path: Path) -> None:
    silent = open_tokenizer("demo:model")
    silent.chat_template = (
        "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
        + str(silent.chat_template)
    )
    rows = clean_rows(3)
    rows[1]["prompt"] = [{"role": "system", "content": "Zz top"}, {"role": "user", "content": "Why?"}]
    report = check(write(tmp_path / "p.jsonl", rows), CheckSettings(tokenizer=silent))
    assert named(report)["left-out"].numbers.tolist() == [1]
    assert named(report)["left-out"].examples[0].note == "the chat template leaves out system text"


def test_merged_boundaries_are_named(tokenizer: Any, tmp_path: Path) -> None:
    rows = clean_rows(3)
    rows[2] = {"prompt": "Triage this rep", "chosen": "ort now", "rejected": "ort later"}
    rows[:2] = [
        {**row, "chosen": f"\n{row['chosen']}", "rejected": f"\n{row['rejected']}"} for row in rows[:2]
    ]
    report = check(write(tmp_path / "p.jsonl", rows), CheckSettings(tokenizer=tokenizer, template="raw"))
    assert named(report)["boundary-merges"].numbers.tolist() == [2]


def test_a_reference_that_ranks_nearly_all_right_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", clean_rows(300))
    seen: list[int] = []

    def score(pairs: list[Any], sure: float) -> list[tuple[float, float, int, int]]:
        seen.append(len(pairs))
        right = round(sure * len(pairs))
        return [(-1.0, -2.0, 4, 4)] * right + [(-2.0, -1.0, 4, 4)] * (len(pairs) - right)

    report = check(path, CheckSettings(reference=(lambda pairs: score(pairs, 0.95), 60)))
    assert seen == [60]
    assert report.facts["reference"] == {"scored": 60, "accuracy": 0.95, "accuracy_per_token": 0.95}
    assert list(named(report)) == ["reference-accuracy"]
    report = check(path, CheckSettings(reference=(lambda pairs: score(pairs, 0.6), 60)))
    assert report.results == ()


def test_both_rows_of_a_pair_are_named(tmp_path: Path) -> None:
    rows: list[Row] = []
    for row in clean_rows(4):
        rows += [{"prompt": row["prompt"], "completion": row["chosen"], "label": True}]
        rows += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False}]
    rows[3]["completion"] = ""
    report = check(write(tmp_path / "kto.jsonl", rows), CheckSettings(format_name="kto"))
    assert named(report)["empty-answers"].numbers.tolist() == [2, 3]
    assert named(report)["empty-answers"].examples[0].numbers == (3, 4)


def test_templates_are_no_duplicates(tmp_path: Path) -> None:
    rows = clean_rows(200)
    template = text(random.Random(1), 120)
    for row in rows:
        row["prompt"] = f"{template}\n\n{row['prompt']}"
    assert check(write(tmp_path / "pairs.jsonl", rows)).results == ()


def test_a_template_of_the_evaluation_is_no_overlap(tmp_path: Path) -> None:
    template = text(random.Random(1), 40)
    train, valid = clean_rows(50), clean_rows(50, seed=1)
    for row in train + valid:
        row["prompt"] = f"{template} {row['prompt']}"
    against = [write(tmp_path / "valid.jsonl", valid)]
    report = check(write(tmp_path / "train.jsonl", train), CheckSettings(against=against))
    assert report.results == ()


def test_other_numbers_make_another_question(tmp_path: Path) -> None:
    question = "What is the total price of {} apples, each of which costs {} cents at the market today?"
    rows = [{**row, "prompt": question.format(i, 3)} for i, row in enumerate(clean_rows(5))]
    against = [write(tmp_path / "valid.jsonl", [{"prompt": question.format(77, 3)}])]
    report = check(write(tmp_path / "train.jsonl", rows), CheckSettings(against=against))
    assert "overlap-fuzzy" not in named(report)


def test_the_same_prompt_as_text_and_as_messages_is_the_same(tmp_path: Path) -> None:
    (row,) = clean_rows(1)
    message = [{"role": "user", "content": row["prompt"]}]
    against = [
        write(tmp_path / "valid.jsonl", [{"messages": [*message, {"role": "assistant", "content": "a"}]}])
    ]
    report = check(
        write(tmp_path / "train.jsonl", [row, {**row, "prompt": message}]), CheckSettings(against=against)
    )
    assert named(report)["overlap-exact"].numbers.tolist() == [0, 1]
    assert named(report)["duplicate-pairs"].numbers.tolist() == [1]


def test_data_to_compare_with_must_have_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", clean_rows(2))
    with pytest.raises(UserError, match=r"facts.jsonl: found no prompts"):
        check(path, CheckSettings(against=[write(tmp_path / "facts.jsonl", [{"fact": "x"}])]))


def test_a_file_of_broken_rows_is_an_error_not_a_crash(tmp_path: Path) -> None:
    report = check(write(tmp_path / "pairs.jsonl", ["{", "[]"]))
    assert report.failed
    assert report.facts == {"rows": 2, "pairs": 0}
    assert as_object(report)["findings"][0]["examples"][0]["rows"] == [1]
    assert summary_lines(report)[0].endswith("2 rows, 0 pairs, 0 prompts; format unknown")


def test_what_was_not_checked_is_said(tmp_path: Path) -> None:
    report = check(write(tmp_path / "pairs.jsonl", clean_rows(2)))
    assert [words.split(":")[0] for words in report.not_checked] == [
        "overlap with evaluation prompts",
        "tokens and truncation",
        "reference accuracy",
    ]
    assert closing_lines(report)[-1].startswith("0 errors, 0 warnings, 0 info; ")


def test_a_finding_reads_as_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "", "rejected": "b"}])
    report = check(path)
    first, where, advice = finding_lines(report, report.results[0])
    assert first == "error: empty-answers (1 of 1): an answer is empty"
    assert where == f"    {path}:1  chosen"
    assert advice.startswith("    what to do: remove them")


def test_the_table_is_whole() -> None:
    names = [check_.name for check_ in CHECKS]
    assert len(names) == len(set(names))
    assert {check_.level for check_ in CHECKS} == set(LEVELS)
    assert all(check_.rows for check_ in CHECKS if check_.drops)
    assert all(family.checks for family in FAMILIES)


@pytest.mark.skipif(not REAL_PAIRS.is_file(), reason="the real pairs are not beside the repository")
@pytest.mark.long
def test_real_pairs_have_the_known_bias(tokenizer: Any) -> None:
    report = check(str(REAL_PAIRS), CheckSettings(tokenizer=tokenizer, limits=Limits(1024)))
    assert report.facts["pairs"] == 793
    assert report.facts["chosen_longer"]["share"] == pytest.approx(0.86, abs=0.005)
    assert {"length-bias", "markdown-skew"} <= set(named(report))
    assert not report.failed


def test_checking_and_rewriting_load_no_mlx(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", clean_rows(5))
    code = (
        "import sys\n"
        "import localdpo.prefs.rewrite\n"
        "from localdpo.prefs.settings import settings_from\n"
        "from localdpo.prefs.check import check\n"
        f"settings, _ = settings_from(None, 'demo:model', 512, None, [{path!r}], None, {path!r})\n"
        f"check({path!r}, settings)\n"
        "print(*[name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_report_is_json(tmp_path: Path, settings: CheckSettings) -> None:
    rows = clean_rows(60)
    rows[3]["chosen"] = rows[3]["rejected"]
    record = json.loads(json.dumps(as_object(check(write(tmp_path / "p.jsonl", rows), settings))))
    assert record["failed"] is True
    assert [one["name"] for one in record["findings"]] == ["identical-answers"]
    assert record["findings"][0]["examples"] == [{"rows": [4], "note": ""}]


def test_a_recipe_with_several_data_sets_is_asked_for_one(tmp_path: Path) -> None:
    from localdpo.prefs.settings import settings_from

    one, two = (write(tmp_path / f"{name}.jsonl", clean_rows(5)) for name in ("one", "two"))
    recipe = tmp_path / "recipe.yaml"
    entry = {"source": two, "max_length": 99, "max_prompt_length": 7, "truncation": "keep_end"}
    data = {"train": [one, {**entry, "format": "preference"}], "valid": [one]}
    recipe.write_text(json.dumps({"model": "demo:model", "data": data}))

    def asked(data: str | None) -> CheckSettings:
        settings, source = settings_from(recipe, None, None, None, [], None, data)
        assert source == data
        return settings

    with pytest.raises(UserError, match=r"trains on 2 data sets: name one of .*one\.jsonl, .*two\.jsonl"):
        asked(None)
    found = asked(two)
    assert found.limits == Limits(99, 7, "keep_end")
    assert (found.format_name, found.against) == ("preference", (one,))
    assert asked(one).limits == asked(str(tmp_path / "other.jsonl")).limits == Limits(1024)

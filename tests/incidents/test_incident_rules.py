from __future__ import annotations

import random
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo import incidents
from localdpo.demo import dataset
from localdpo.incidents import Facts

FACTS = Facts("checkout", "Oslo", "errors", 34, 25, 1200)
GOLD = incidents.gold_answer(FACTS)
seeds = st.integers(0, 2**32)


def facts_of(seed: int) -> Facts:
    return incidents.sample_facts(random.Random(seed))


def test_gold_answer_reads_as_planned() -> None:
    assert GOLD == (
        "Severity: SEV1\nSummary: checkout errors at 34% in Oslo for 25 min, 1200 customers.\n"
        "Next: roll back the last release."
    )


@given(seeds)
def test_gold_answers_are_perfect(seed: int) -> None:
    facts = facts_of(seed)
    verdict = incidents.judge(incidents.gold_answer(facts), facts)
    assert verdict.exact
    assert verdict.total == 3.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "checkout errors",
        GOLD.replace("Severity", "severity"),
        GOLD.replace("SEV1", "SEV5"),
        GOLD.replace("SEV1", "SEV1 "),
        GOLD.replace("\n", " "),
        GOLD.replace("\n", "\n\n"),
        GOLD + "\nNext: wait.",
        "Sure!\n" + GOLD,
        GOLD.split("\nNext")[0],
        "\n".join(reversed(GOLD.split("\n"))),
        "Severity: SEV1\nSummary: \nNext: roll back the last release.",
    ],
)
def test_anything_but_the_three_lines_is_refused(text: str) -> None:
    assert incidents.parse(text) is None
    verdict = incidents.judge(text, FACTS)
    assert not verdict.conforms
    assert not verdict.exact
    assert verdict.total == 0.0


def test_white_space_around_an_answer_does_not_count() -> None:
    assert incidents.judge(f" {GOLD}\n", FACTS).exact


@pytest.mark.parametrize("level", ["SEV2", "SEV3", "SEV4"])
def test_wrong_severity_is_found(level: str) -> None:
    verdict = incidents.judge(GOLD.replace("SEV1", level), FACTS)
    assert (verdict.severity, verdict.action, verdict.faithful, verdict.exact) == (False, True, True, False)
    assert verdict.total == 2.5


@pytest.mark.parametrize("name", ["percent", "region", "minutes", "customers"])
def test_missing_fact_is_named(name: str) -> None:
    text = incidents.answer("SEV1", incidents.summary(FACTS, [name]), "roll back the last release")
    verdict = incidents.judge(text, FACTS)
    assert verdict.missing == (name,)
    assert verdict.invented == ()
    assert verdict.severity
    assert verdict.action
    assert verdict.total == 3.25


@pytest.mark.parametrize(
    ("old", "new", "missing", "invented"),
    [
        ("34%", "43%", ("percent",), ("percent: 43",)),
        ("25 min", "26 min", ("minutes",), ("minutes: 26",)),
        ("1200 customers", "120 customers", ("customers",), ("customers: 120",)),
        ("checkout", "search", ("service",), ("service: search",)),
        ("Oslo", "Tokyo", ("region",), ("region: Tokyo",)),
        ("errors", "stale data", ("symptom",), ("symptom: stale data",)),
        ("34%", "34", ("percent",), ("number: 34",)),
        ("checkout", "chckout", ("service",), ()),
        ("customers.", "customers. Maybe a full disk.", (), ("cause: a full disk",)),
        ("customers.", "customers, also Seoul.", (), ("region: Seoul",)),
        ("1200 customers", "1200 customers, 40 customers", (), ("customers: 40",)),
        ("25 min", "25 min for 7 days", (), ("number: 7",)),
    ],
)
def test_each_corruption_is_found(
    old: str, new: str, missing: tuple[str, ...], invented: tuple[str, ...]
) -> None:
    verdict = incidents.judge(GOLD.replace(old, new), FACTS)
    assert verdict.conforms
    assert verdict.missing == missing
    assert verdict.invented == invented
    assert not verdict.faithful
    assert verdict.total == 3.5 - 0.25 * (len(missing) + len(invented))


@pytest.mark.parametrize(
    "action", ["add more workers.", "roll back the last.", "roll back the last release and wait."]
)
def test_wrong_action_is_found(action: str) -> None:
    verdict = incidents.judge(GOLD.replace("roll back the last release.", action), FACTS)
    assert not verdict.action
    assert verdict.faithful
    assert verdict.total == 3.0


@given(seeds, seeds)
def test_answer_to_another_report_is_unfaithful(one: int, other: int) -> None:
    first, second = facts_of(one), facts_of(other)
    verdict = incidents.judge(incidents.gold_answer(first), second)
    assert verdict.faithful == (first == second)


@given(seeds)
def test_prose_is_judged_by_what_it_says(seed: int) -> None:
    facts = facts_of(seed)
    verdict = incidents.judge(dataset.prose(facts, random.Random(seed)), facts)
    assert not verdict.conforms
    assert (verdict.severity, verdict.action, verdict.faithful) == (True, True, True)


@given(seeds)
def test_a_careful_demonstration_is_gold_and_a_careless_one_keeps_the_format(seed: int) -> None:
    facts, rng = facts_of(seed), random.Random(seed)
    none = dict.fromkeys(dataset.FLAWS, 0.0)
    with mock.patch.dict(dataset.FLAWS, none):
        assert dataset.demonstration(facts, rng) == incidents.gold_answer(facts)
    for flaw in dataset.FLAWS:
        with mock.patch.dict(dataset.FLAWS, none | {flaw: 1.0}):
            text = dataset.demonstration(facts, rng)
        verdict = incidents.judge(text, facts)
        assert verdict.conforms
        assert verdict.severity == (flaw != "severity")
        assert verdict.action == (flaw != "action")
        assert bool(verdict.missing) == (flaw == "missing")
        assert bool(verdict.invented) == (flaw == "rambling")


def test_the_worst_answer_in_the_format_is_still_above_none() -> None:
    junk = "Severity: SEV4\nSummary: search stale data at 1%, 2 min, 3 customers in Tokyo.\nNext: wait."
    assert incidents.judge(junk, FACTS).total == 1.0


def test_an_answer_beats_another_by_its_format_or_when_it_is_worse_in_nothing() -> None:
    texts = {
        "gold": GOLD,
        "level": GOLD.replace("SEV1", "SEV2"),
        "brief": GOLD.replace(" in Oslo", ""),
        "prose": GOLD.replace("\n", " "),
    }
    verdicts = {name: incidents.judge(text, FACTS) for name, text in texts.items()}
    beaten = {(a, b) for a in texts for b in texts if verdicts[a].beats(verdicts[b])}
    better = {("gold", "level"), ("gold", "brief")}
    assert beaten == better | {(name, "prose") for name in ("gold", "level", "brief")}


@given(seeds, seeds)
def test_beating_is_one_sided_and_means_a_higher_total(one: int, other: int) -> None:
    facts = facts_of(one)
    with mock.patch.dict(dataset.FLAWS, dict.fromkeys(dataset.FLAWS, 0.5)):
        first, second = (
            incidents.judge(dataset.demonstration(facts, random.Random(seed)), facts) for seed in (one, other)
        )
    if first.beats(second):
        assert not second.beats(first)
        assert first.total > second.total

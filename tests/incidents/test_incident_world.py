from __future__ import annotations

import dataclasses
import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo import incidents
from localdpo.demo import dataset
from localdpo.incidents import Facts

seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_report_tells_every_fact_and_no_other(seed: int) -> None:
    rng = random.Random(seed)
    facts = incidents.sample_facts(rng)
    text = incidents.report(facts, rng)
    told = incidents.mentions(text)
    expected = {(name, str(value)) for name, value in facts.to_dict().items() if name != "symptom"}
    if "Customers affected: " in text:
        expected = {("number", value) if name == "customers" else (name, value) for name, value in expected}
    assert {fact for fact in told if fact[0] != "symptom"} == expected
    assert any(wording in text for wording in incidents.SYMPTOMS[facts.symptom].wordings)


@given(seeds)
def test_facts_survive_a_round_trip(seed: int) -> None:
    facts = incidents.sample_facts(random.Random(seed))
    assert Facts.from_dict(facts.to_dict()) == facts


@pytest.mark.parametrize("change", [{"extra": 1}, {"service": None}])
def test_facts_with_other_fields_are_refused(change: dict[str, object]) -> None:
    values: dict[str, object] = {**incidents.sample_facts(random.Random(0)).to_dict(), **change}
    if change.get("service", 0) is None:
        del values["service"]
    with pytest.raises(ValueError, match="facts need exactly"):
        Facts.from_dict(values)


@pytest.mark.parametrize(
    ("percent", "customers", "level"),
    [
        (9, 99, "SEV4"),
        (10, 99, "SEV3"),
        (9, 100, "SEV3"),
        (40, 99, "SEV2"),
        (39, 999, "SEV2"),
        (9, 1000, "SEV2"),
        (40, 100, "SEV1"),
        (10, 1000, "SEV1"),
        (95, 9900, "SEV1"),
    ],
)
def test_severity_bands(percent: int, customers: int, level: str) -> None:
    assert incidents.severity(Facts("chat", "Oslo", "errors", percent, 10, customers)) == level


@given(seeds)
def test_severity_never_falls_when_it_gets_worse(seed: int) -> None:
    facts = incidents.sample_facts(random.Random(seed))
    worse = dataclasses.replace(facts, percent=facts.percent + 30, customers=facts.customers * 10)
    assert incidents.severity(worse) <= incidents.severity(facts)


def test_no_level_is_rare() -> None:
    rng = random.Random(0)
    counts = Counter(incidents.severity(incidents.sample_facts(rng)) for _ in range(3000))
    assert set(counts) == set(incidents.SEVERITIES)
    assert min(counts.values()) > 250


def test_incidents_are_seeded_and_distinct() -> None:
    first = list(islice(incidents.draw_incidents(random.Random(3)), 200))
    assert first == list(islice(incidents.draw_incidents(random.Random(3)), 200))
    assert len({facts for facts, _ in first}) == 200


@given(seeds)
def test_pre_training_never_shows_the_fixed_format(seed: int) -> None:
    for message in dataset.document(random.Random(seed)):
        assert incidents.parse(message["content"]) is None
        assert "Severity: SEV" not in message["content"]

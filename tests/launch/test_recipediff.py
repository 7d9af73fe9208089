from __future__ import annotations

from localdpo.core.differing import differing
from localdpo.launch.recipediff import options_of


def test_entries_of_lists_of_data_sets_differ_one_by_one():
    one = options_of(
        "data: {train: [{source: a, weight: 1.0}, {source: b, weight: 0.5}]}\nlora: {keys: [q, k]}"
    )
    two = options_of("data: {train: [{source: a, weight: 2.0}]}\nlora: {keys: [q, k]}")
    three = options_of("data: {train: a}\nlora: {keys: [q]}")
    assert one is not None
    assert two is not None
    assert three is not None
    assert differing([one, two]) == [
        ("data.train[0].weight", ["1", "2"]),
        ("data.train[1].source", ["b", ""]),
        ("data.train[1].weight", ["0.5", ""]),
    ]
    assert ("data.train", ["", "a"]) in differing([two, three])
    assert ("lora.keys", ["['q', 'k']", "['q']"]) in differing([two, three])

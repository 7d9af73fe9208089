from __future__ import annotations

from signal import SIGINT, SIGTERM

import pytest

from localdpo.core.process import StopRequests


@pytest.mark.parametrize(
    ("came", "requests"),
    [
        ([(SIGINT, 0.0)], 1),
        ([(SIGINT, 0.0), (SIGINT, 0.001)], 2),
        ([(SIGTERM, 0.0), (SIGTERM, 5.0)], 2),
        ([(SIGTERM, 0.0), (SIGINT, 0.2)], 1),
        ([(SIGINT, 0.0), (SIGTERM, 0.2)], 1),
        ([(SIGTERM, 0.0), (SIGINT, 0.2), (SIGINT, 0.3)], 1),
        ([(SIGTERM, 0.0), (SIGINT, 0.2), (SIGINT, 3.0)], 2),
        ([(SIGINT, 0.0), (SIGTERM, 1.5)], 2),
    ],
)
def test_two_kinds_at_once_are_one_request(came: list[tuple[int, float]], requests: int):
    counter = StopRequests()
    taken = [counter.take(number, now) for number, now in came]
    assert taken[0]
    assert sum(taken) == counter.count == requests

from __future__ import annotations

from localdpo.dashboard.widgets.basic import Walk, spread


def walk(*steps: int) -> Walk:
    found = Walk()
    found.extend(steps)
    return found


def test_it_stays_with_the_newest_until_it_is_moved():
    found = walk()
    assert (found.index, found.step) == (None, None)
    found.extend([0, 20])
    assert found.step == 20
    found.move(-1)
    found.extend([0, 20, 40])
    assert (found.step, found.index) == (0, 0)
    found.move(1)
    assert found.step == 20
    found.move(5)
    found.extend([0, 20, 40, 60])
    assert found.step == 60


def test_it_ends_at_both_ends():
    found = walk(0, 20, 40)
    found.move(-9)
    assert found.step == 0
    found.to(1)
    assert found.step == 20
    found.newest()
    assert found.step == 40


def test_a_step_that_a_resume_took_away_gives_way_to_the_next():
    found = walk(0, 20, 40, 60)
    found.to(2)
    found.extend([0, 20])
    assert found.step == 20
    found.extend([0, 20, 45, 60])
    assert found.step == 45


def test_moving_in_nothing_does_nothing():
    found = walk()
    found.move(1)
    found.to(3)
    assert found.step is None


def test_stops_are_spread_over_the_width():
    assert spread(1, 10, 5) == [14]
    assert spread(3, 11, 0) == [0, 5, 10]
    assert spread(2, 8, 2) == [2, 9]

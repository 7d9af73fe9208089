"""`make bench FULL=1` takes the sizes of the figures in docs/figures.md; without it a fraction of them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="measure at full size: half an hour")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to measure at full size."""
    return bool(request.config.getoption("--full"))

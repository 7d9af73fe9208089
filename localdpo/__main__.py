"""`python -m localdpo`: the same as the `localdpo` command."""

from __future__ import annotations

from localdpo.cli.main import run

if __name__ == "__main__":
    run()

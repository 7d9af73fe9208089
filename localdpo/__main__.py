"""The `localdpo` command, also as `python -m localdpo`."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line. Ctrl-C while it is still loaded, a quarter of a second, ends quietly, too."""
    try:
        from localdpo.cli.main import run as run_command
    except KeyboardInterrupt:
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    run()

"""Every series of trials in full, and one table of what was tried and lost: `make soak`.

    python tests/reliability/soak.py [NAME ...]      the series of these names only

Takes more than an hour on two cores. Ends with exit code 1 unless every promise was kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/train", "tests/prefs", "tests", "tests/reliability"):
    sys.path.insert(0, str(ROOT / folder))

from localdpo.core.process import preload  # noqa: E402

preload()

import build_kills  # noqa: E402
import corruption  # noqa: E402
import disk  # noqa: E402
import endurance  # noqa: E402
import fuzz  # noqa: E402
import kills  # noqa: E402
import races  # noqa: E402
import suite  # noqa: E402
from tally import Tally, table  # noqa: E402


def beside(series: Callable[[kills.Whole, Path], Tally]) -> Callable[[Path], Tally]:
    """The series, whose runs are compared with one that nobody disturbs."""

    def run(folder: Path) -> Tally:
        with kills.undisturbed(folder / "undisturbed") as whole:
            return series(whole, folder)

    return run


SERIES: dict[str, Callable[[Path], Tally]] = {
    "long": lambda folder: suite.run_tests(folder, "long tests", "tests", trials=8, options=suite.LONG),
    "kills": beside(lambda whole, folder: kills.kill_runs(whole, folder, "anywhere", 110)),
    "saves": beside(lambda whole, folder: kills.kill_runs(whole, folder, "save", 50)),
    "reference": beside(lambda whole, folder: kills.kill_runs(whole, folder, "reference", 20)),
    "commands": lambda folder: suite.run_tests(folder, "commands to a run", suite.COMMANDS, trials=100),
    "builds": lambda folder: build_kills.kill_builds(folder, 20),
    "damage": lambda folder: corruption.corrupt(folder, 1300),
    "recipes": lambda folder: fuzz.fuzz(folder, "mutated recipes", ("recipes",), 10_000),
    "rows": lambda folder: fuzz.fuzz(folder, "mutated rows", fuzz.ROWS, 20_000),
    "files": lambda folder: fuzz.fuzz(folder, "mutated adapters, models, tokenizers", fuzz.MODELS, 2_000),
    "others": lambda folder: fuzz.fuzz(folder, "other mutated files", fuzz.OTHERS, 2_000),
    "disk": beside(lambda whole, folder: disk.fill_levels(whole, folder, 100)),
    "races": beside(lambda whole, folder: races.race_commands(whole, folder, 50)),
    "recipes-train": lambda folder: suite.run_tests(folder, "demo recipes in full", suite.RECIPES, trials=1),
    "endurance": lambda folder: endurance.endure(folder, 10_000)[0],
}


def main(names: list[str]) -> int:
    """Run the series of these names, all of them for none; 0 if every promise was kept."""
    unknown = sorted(set(names) - SERIES.keys())
    if unknown:
        print(f"no such series: {', '.join(unknown)}; expected some of {', '.join(SERIES)}")
        return 2
    tallies = []
    for name in names or SERIES:
        if name == "disk" and not disk.can_mount():
            print("disk: left out, since it mounts a volume and that needs root on Linux", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix=f"soak-{name}-") as folder:
            began = time.monotonic()
            tallies.append(SERIES[name](Path(folder)))
        print(f"{name}: {tallies[-1].tried:,} tried in {time.monotonic() - began:.0f} s", flush=True)
        for line in tallies[-1].details:
            print(f"    {line}", flush=True)
    print(f"\n{date.today()}, {sys.platform}\n\n{table(tallies)}")
    return 0 if all(tally.held for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

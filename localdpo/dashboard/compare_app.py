"""`localdpo compare` on a terminal: the dashboard, open on the compare screen, with answers to ask for."""

from __future__ import annotations

from pathlib import Path

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.screens.compare import CompareScreen
from localdpo.records.answers import AnswersRequest
from localdpo.records.rundir import RunDir


class CompareApp(DashboardApp):
    """The dashboard on Compare. `request` is asked at once, as far as the run's folder lacks answers."""

    def __init__(self, runs_dir: Path, run: RunDir, request: AnswersRequest) -> None:
        super().__init__(runs_dir, run, jump="compare")
        self.uninstall_screen("compare")
        self.install_screen(CompareScreen(request), "compare")

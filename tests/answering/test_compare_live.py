"""`localdpo compare` with real, tiny models: its screen, and what it prints."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from answering_runs import run_folder
from textual.pilot import Pilot
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.records.answers import AnswersRequest, Sampling, answers_files, read_answers

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_the_screen_asks_follows_and_shows(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> None:
    run = run_folder(tmp_path / "runs" / "a", tiny_model, sft_adapter)
    request = AnswersRequest(run.path, texts=("What is good?", "What is bad?"), sampling=Sampling(6, 1.0, 1))
    screen = DashboardApp(tmp_path / "runs", run, jump="compare", request=request)

    async def watch(pilot: Pilot[None], files: int) -> None:
        for _ in range(1200):
            made = answers_files(run.path)
            # A frame is drawn only when a file has its header and six answers.
            if len(made) == files and made[0].read_bytes().count(b"\n") > 6:
                frame = frame_text(screen)
                if "6/6 answers" in frame and "generating" not in frame:
                    return
            await pilot.pause(0.1)
        raise AssertionError(frame_text(screen))

    async def act() -> None:
        async with screen.run_test(size=(120, 36)) as pilot:
            await watch(pilot, 1)
            (first,) = answers_files(run.path)
            assert "What is good?" in frame_text(screen)
            assert read_answers(first).complete
            await pilot.press("G")
            await pilot.pause()
            await watch(pilot, 2)
            assert "seed 2" in frame_text(screen)
            assert len(answers_files(run.path)) == 2

    asyncio.run(act())


def test_the_command_answers_prints_and_keeps(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "runs" / "a", tiny_model, sft_adapter)
    other = run_folder(tmp_path / "runs" / "b", tiny_model, None, seed=9)
    words = ["compare", "a", "--with", other.name, "--runs-dir", str(tmp_path / "runs")]
    words += ["--prompt", "What is good?", "--max-tokens", "5"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    (prompt,) = json.loads(done.stdout)["prompts"]
    assert list(prompt["answers"]) == ["base", "sft", "dpo", "run:b"]
    for answer in prompt["answers"].values():
        assert set(answer["logps"]) == set(prompt["answers"])
        assert all(value < 0 for value in answer["logps"].values())

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("localdpo.answering.generator.load_base", refuse)
    again = CliRunner().invoke(app, [*words, "--plain"])
    assert again.exit_code == 0, again.output
    lines = again.stdout.splitlines()
    assert [lines.count(f"{name}:") for name in ("base", "SFT", "DPO", "b")] == [1, 1, 1, 1]
    assert len(answers_files(run.path)) == 1

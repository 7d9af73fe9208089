"""Series of rounds that are killed: a job is {"folder", "model", "adapter", "die"}; see `serve`.

The child makes two rounds in `folder` on the tiny model, with a judge that counts letters and a training in
its own process. `die` is the call at which it kills itself with SIGKILL: [part, how often it was called
before], null for never.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from building import CountingJudge, write_prompts
from children import Job, serve, status_of
from tiny_folders import recipe_text, write_pairs

from localdpo.judging import registry
from localdpo.launch import rounds
from localdpo.launch.begin import TrainRequest, open_run
from localdpo.records.series import RoundsDir
from localdpo.train.control import StopRequest
from localdpo.train.worker import train_run


def make(job: Job) -> int:
    folder = Path(job["folder"])
    os.chdir(folder)
    if not Path("recipe.yaml").exists():
        write_prompts(Path("prompts.jsonl"), 10)
        write_prompts(Path("all.jsonl"), 16)
        Path("heldout.jsonl").write_text("".join(Path("all.jsonl").read_text().splitlines(True)[10:]))
        text = recipe_text(
            Path(job["model"]),
            write_pairs(Path("pairs.jsonl"), 8),
            adapter=job["adapter"],
            train={"max_steps": 3},
            save={"every": 1},
            eval={"prompts": "heldout.jsonl", "kl_samples": 0, "kl_pairs": 0},
            rounds={
                "prompts": "prompts.jsonl",
                "max_tokens": 10,
                "judge": "counting",
                "reference": job.get("reference", "last"),
                "learning_rate_decay": 0.5,
            },
        )
        Path("recipe.yaml").write_text(text)
    registry.make_judge = lambda spec, request, mode: CountingJudge(mode)  # type: ignore[assignment]
    # The policies of so few steps are hardly better.
    rounds.why_end = lambda done, wanted, *limits: "done" if len(done) == wanted else None
    calls: Counter[str] = Counter()

    def at(part: str) -> Callable[..., None]:
        def called(*values: Any) -> None:
            if job["die"] == [part, calls[part]]:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[part] += 1

        return called

    hooks = registry.Hooks(on_answer=at("answer"), on_verdict=at("verdict"))
    hands = rounds.Hands(
        ask=lambda options, plan, run: run(plan(options), hooks=hooks),
        train=lambda run: train_run(
            run, StopRequest(), accept=False, on_event=lambda event: at(event.type)()
        ),
        note=lambda line: None,
        on_round=at("round"),
    )
    series = open_run(TrainRequest(Path("recipe.yaml"), run="series", kind=RoundsDir), lambda line: None)
    assert isinstance(series, RoundsDir)
    plan = rounds.plan_rounds(rounds.load_recipe(series.recipe))
    return rounds.run_rounds(series, plan, 2, hands)[1]


if __name__ == "__main__":
    serve(make, status_of)

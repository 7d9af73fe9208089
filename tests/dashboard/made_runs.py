"""Runs whose every number and time is made up and fixed, and an app that shows them at a fixed time."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual._compositor import Compositor
from textual.app import App
from textual.css.stylesheet import Stylesheet
from textual.drivers.headless_driver import HeadlessDriver
from textual.events import Key, Resize
from textual.geometry import Size
from textual.keys import _character_to_key, key_to_character
from textual.pilot import Pilot

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.feed import RenderThrottle
from localdpo.records.events import encode_event
from localdpo.records.rundir import RunDir

BEGAN = 1_700_000_000.0
NOW = BEGAN + 7200.0
EVERY = 10
STEPS = 40
# The style sheets that an app of this process has read, with their colours: every app reads the same ones.
PARSED: dict[Any, Any] = {}
DEVICE = "cpu (libopenblas.so.0)"

RECIPE = """model: org/tiny
adapter: demo:sft
loss:
  type: {loss}
  beta: {beta}
train:
  seed: {seed}
  learning_rate: 5.0e-06
"""
ANSWERS = (
    "Severity: SEV4\nSummary: something is slow.\nNext: wait.",
    "Severity: SEV2\nSummary: login is slow in Tokyo.\nNext: wait.",
    "Severity: SEV2\nSummary: login times out in Tokyo, 1600 customers.\nNext: add more workers.",
)


def make_run(
    runs_dir: Path,
    name: str,
    *,
    steps: int = STEPS,
    loss: str = "sigmoid",
    beta: float = 0.1,
    seed: int = 0,
    began: float = BEGAN,
    end: str | None = "run.finished",
    pairs: bool = True,
    kind: str = "pairs",
) -> RunDir:
    """A run of `steps` of STEPS steps with an evaluation every EVERY; `end` is its last event, None: none."""
    run = RunDir.create(runs_dir, name, RECIPE.format(loss=loss, beta=beta, seed=seed))
    recipe = {"loss": {"beta": beta}, "eval": {"every": EVERY}, "save": {"every": EVERY}}
    start: dict[str, Any] = {"model": "org/tiny", "loss": loss, "kind": kind, "device": DEVICE}
    start["total_steps"] = STEPS
    lines = [encode_event("run.started", None, began, {**start, "recipe": recipe, "memory_limit_gb": 16.0})]
    lines += evaluation(run, 0, began + 1, seed, pairs)
    for step in range(1, steps + 1):
        lines.append(encode_event("step", step, began + 1 + step, {"metrics": step_metrics(step, seed)}))
        if step % EVERY == 0:
            lines += evaluation(run, step, began + 1.5 + step, seed, pairs)
    if end is not None:
        said = {"seconds": steps + 2.0, "metrics": {}} if end == "run.finished" else DEATH
        lines.append(encode_event(end, steps, began + 2 + steps, said))
    run.events.write_bytes(b"".join(lines))
    return run


DEATH = {
    "signal": "SIGKILL",
    "lines": ["the worker was killed by SIGKILL after step 20 of 40", "resume with: localdpo train --resume"],
}


def step_metrics(step: int, seed: int) -> dict[str, float]:
    """Metrics of one step: learning, with a wave instead of noise."""
    share, wave = step / STEPS, 0.05 * math.sin(step + seed)
    return {
        "loss": 0.693 - 0.2 * share + wave / 2,
        "rewards/margins": 0.5 * share + wave,
        "rewards/chosen": -0.1 * share + wave / 2,
        "rewards/rejected": -0.6 * share - wave / 2,
        "rewards/accuracies": min(1.0, 0.5 + 0.35 * share + wave),
        "grad_norm": 1.0 + wave,
        "learning_rate": 5e-6 * (1 - share),
        "tokens_per_second": 1500 + 100 * wave,
        "peak_memory_gb": 12.5,
        "step_seconds": 1.0,
        "logratio_per_token/chosen": -0.01 * share,
        "logratio_per_token/rejected": -0.06 * share,
    }


def evaluation(run: RunDir, step: int, time: float, seed: int, pairs: bool) -> list[bytes]:
    """The events of the evaluation at `step`, and its file of pairs."""
    share = step / STEPS
    metrics = {
        "loss": 0.693 - 0.15 * share,
        "rewards/accuracies": 0.5 + 0.3 * share,
        "rewards/margins": 0.4 * share,
        "rewards/chosen": -0.1 * share,
        "rewards/rejected": -0.5 * share,
        "kl": 0.05 * share + seed / 1000,
    }
    events = [encode_event("eval", step, time, {"metrics": metrics, "pairs": 8, "seconds": 0.5})]
    samples = [
        {
            "prompt": "Triage this report.\nLogin hangs in Tokyo.",
            "reference": ANSWERS[0],
            "policy": answer(step),
        },
        {"prompt": "Say [bold]hello[/bold].", "reference": "Hello.", "policy": "Hello."},
    ]
    events.append(encode_event("samples", step, time + 0.1, {"samples": samples}))
    if pairs:
        path = run.path / "pairs" / f"step-{step:06d}.json"
        path.parent.mkdir(exist_ok=True)
        found = [pair(row, share) for row in (7, 3, 12)]
        path.write_text(json.dumps({"step": step, "beta": 0.1, "pairs": found}))
        fields = {"path": f"pairs/{path.name}", "lowest": [[one["row"], one["margin"]] for one in found]}
        events.append(encode_event("pairs", step, time + 0.2, fields))
    return events


def answer(step: int) -> str:
    """What the policy says at `step`."""
    return ANSWERS[min(len(ANSWERS) - 1, step // EVERY)]


def pair(row: int, share: float) -> dict[str, Any]:
    """A pair of low margin, with the rewards of its tokens."""
    chosen = [["Severity", 0.0], [": SEV2", 0.08 * share], ["\n", 0.0], ["Next: wait.", -0.2 * share]]
    rejected = [["Severity", 0.0], [": SEV4", 0.1 * share], ["\n", 0.0], ["Next: leave it.", 0.02 * share]]
    return {
        "row": row,
        "source": "demo:preferences/valid",
        "prompt": f"Triage report {row}.",
        "margin": -0.24 * share,
        "chosen": response(chosen),
        "rejected": response(rejected),
    }


def response(tokens: list[list[Any]]) -> dict[str, Any]:
    return {
        "text": "".join(text for text, _ in tokens),
        "reward": sum(reward for _, reward in tokens),
        "tokens": tokens,
    }


def make_evaluation(run: RunDir, name: str = "rules", judged: bool = True) -> Path:
    """An evaluation as `localdpo eval` writes it: two models, four prompts, a verdict of each kind."""
    verdicts = [
        ("1", "outage", 1.0, False, ("first", "second"), "it names the customers"),
        ("2", "outage", 0.0, False, ("second", "first"), "it invents a cause"),
        ("3", "slow", 0.5, True, ("first", "first"), "the first is shorter"),
        ("4", "slow", None, False, ("", ""), ""),
    ]
    duel = {
        "first": "dpo", "second": "sft", "prompts": 4, "valid": 3, "wins": 1, "ties": 1, "losses": 1,
        "identical": 0, "flips": 1, "statuses": {"unparsable": 2}, "consistency": 0.5, "position_bias": None,
        "win_rate": {"value": 0.5, "low": 0.2, "high": 0.8}, "sign_test_p": 1.0, "prompts_needed": None,
        "length_controlled": {"rate": {"value": 0.45, "low": 0.3, "high": 0.6}, "phi": 0.1, "refused": None},
        "categories": [
            {"name": "outage", "valid": 2, "win_rate": {"value": 0.5, "low": 0.1, "high": 0.9}},
            {"name": "slow", "valid": 1, "win_rate": {"value": 1.0, "low": 0.6, "high": 1.0}},
        ],
        "people": {"votes": 12, "agreement": 0.75, "kappa": 0.5},
    }  # fmt: skip
    metric = {"name": "all right", "direction": "higher", "digits": 3, "counts": {"sft": 4, "dpo": 4}}
    metric |= {"means": {"sft": 0.5, "dpo": 0.75}, "reading": "better"}
    record = {
        "v": 1,
        "name": name,
        "run": run.name,
        "source": "demo:prompts/heldout",
        "prompts": 4,
        "sampling": {"max_tokens": 64, "temperature": 1.0, "seed": 0},
        "contestants": [{"name": key, "label": key.upper(), "role": "own"} for key in ("sft", "dpo")],
        "versus": ["sft", "dpo"],
        "judge": {"name": "rules", "identity": {}} if judged else None,
        "metrics": [metric, {**metric, "name": "words", "reading": "", "digits": 1}],
        "duels": [duel, {**duel, "first": "sft", "second": "dpo", "wins": 7}] if judged else [],
        "strengths": [],
        "conclusion": ["No verdict: the interval holds 50."],
        "rows": [_row(*verdict, judged) for verdict in verdicts],
    }
    path = run.path / "eval" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def _row(
    id: str,
    category: str,
    score: float | None,
    flipped: bool,
    choices: tuple[str, str],
    reason: str,
    judged: bool,
) -> dict[str, Any]:
    status = "ok" if choices[0] else "unparsable"
    orders = [
        {
            "status": status,
            "choice": choice or None,
            "score": None,
            "reason": reason,
            "principle": None,
            "raw": "",
        }
        for choice in choices
    ]
    verdict = {"score": score, "flipped": flipped, "identical": False, "orders": orders}
    names = (("dpo", "sft"), ("sft", "dpo"))
    return {
        "id": id,
        "prompt": f"Triage [report] {id}.",
        "category": category,
        "answers": {"sft": {"text": f"SEV4 report {id}."}, "dpo": {"text": f"SEV2 report {id}."}},
        "verdicts": [{"first": a, "second": b, **verdict} for a, b in names] if judged else [],
        "scores": {},
    }


def make_app(run: RunDir | None, screen: str = "live", **more: Any) -> DashboardApp:
    """The app on `run`, at the time NOW, as on a terminal of many colours, without a limit on its frames."""
    runs_dir = run.path.parent if run is not None else Path("runs")
    environment = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "en_US.UTF-8"}
    environment |= more.pop("environment", {})
    more = {"clock": lambda: NOW, "throttle": RenderThrottle(used=lambda: 0.0), **more}
    return DashboardApp(runs_dir, run, jump=screen, environment=environment, **more)


def drive(
    app: App[Any],
    act: Callable[[Pilot[Any]], Awaitable[None]],
    size: tuple[int, int] = (120, 36),
    *,
    paint: bool = False,
) -> None:
    """Run the app without a terminal and let `act` press its keys.

    Without `paint` it is drawn where `act` looks at a frame, and nothing in between: what a terminal would
    get after each key takes most of the time, and nobody sees it.
    """

    async def run() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await settle(pilot)
            await act(pilot)

    render_update, parse_rules = Compositor.render_update, Stylesheet._parse_rules

    def parse_once(sheet: Stylesheet, css: str, read_from: Any, *scope: Any, **named: Any) -> Any:
        key = (css, read_from, scope, *named.items(), *sheet._variables.items())
        if key not in PARSED:
            PARSED[key] = parse_rules(sheet, css, read_from, *scope, **named)
        return PARSED[key]

    def only_whole_frames(compositor: Compositor, full: bool = False, **more: Any) -> Any:
        if full:
            return render_update(compositor, full, **more)
        compositor._dirty_regions.clear()
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "_parse_rules", parse_once)
        if not paint:
            patch.setattr(Compositor, "render_update", only_whole_frames)
        asyncio.run(run())


async def settle(pilot: Pilot[Any]) -> None:
    """Wait until all messages are processed, laid out and painted, however long the machine takes.

    Textual's own `pilot.pause` looks at the processor time of the process, and takes one that gets no time
    for one that is idle.
    """
    app = pilot.app
    # A widget asks for a layout only once its queue is empty, so that one idle round proves nothing yet.
    idle_rounds = 0
    while idle_rounds < 2 and app.is_running:
        await pilot._wait_for_screen(timeout=60.0)
        await app.animator.wait_until_complete()
        # What Textual does at the next tick of its timers is done now.
        app._check_resize()
        screen = app.screen
        screen._on_timer_update()
        nodes = (app, *screen.walk_children(with_self=True))
        is_idle = not (
            screen._layout_required
            or screen._repaint_required
            or screen._dirty_widgets
            or screen._callbacks
            or any(node._next_callbacks or node._pending_message for node in nodes)
            or not all(node._message_queue.empty() for node in nodes)
        )
        idle_rounds = idle_rounds + 1 if is_idle else 0


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Press keys one after the other, each to its end."""
    for key in keys:
        name = _character_to_key(key) if len(key) == 1 else key
        pilot.app.post_message(Key(name, key if len(key) == 1 else key_to_character(name)))
        await settle(pilot)


async def resize(pilot: Pilot[Any], width: int, height: int) -> None:
    """Give the terminal another size."""
    size = Size(width, height)
    assert isinstance(pilot.app._driver, HeadlessDriver)
    pilot.app._driver._size = size
    pilot.app.post_message(Resize(size, size))
    await settle(pilot)


async def until(pilot: Pilot[Any], happened: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `happened()` is true; fails with the frame when it is not so after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen:\n{frame_text(pilot.app)}"
        await pilot.pause(0.03)
        await settle(pilot)


async def shown(pilot: Pilot[Any], text: str) -> None:
    """Wait until `text` is on the screen, wherever its lines break."""
    await until(pilot, lambda: text in " ".join(frame_text(pilot.app).split()))

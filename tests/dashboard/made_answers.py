"""Answers files made up for the compare screen: no model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localdpo.records.answers import AnswerRecord, AnswersWriter, Header, Sampling, answers_path
from localdpo.records.verdicts import Choice, Verdict, VerdictRecord, encode_verdict

LABELS = {"base": "base", "sft": "SFT", "dpo": "DPO"}
ROLES = {"base": "base", "sft": "start", "dpo": "trained"}
PROMPTS = ("Why is the sky blue?", "Why is [bold]grass[/bold] green?", "Why is snow white?", "Why?")
# By prompt: base, SFT, DPO. The second prompt's SFT and DPO agree, the third's DPO is shorter.
TEXTS = (
    (
        "It is.",
        "The sky is blue because light scatters.",
        "The sky looks blue because short waves scatter.",
    ),
    ("No.", "Grass holds chlorophyll.", "Grass holds chlorophyll."),
    ("\x1b[31mred", "Snow scatters all light, and that is white to us.", "Snow scatters all light."),
    ("Because.", "That depends.", "That depends on what you ask."),
)


def header(names: Sequence[str] = tuple(LABELS), key: str = "k1", prompts: Sequence[str] = PROMPTS) -> Header:
    """What was asked of the contestants `names`."""
    return Header(
        key=key,
        run="run",
        sampling=Sampling(64, 0.7, 3),
        contestants=tuple(
            {"name": name, "label": LABELS.get(name, name), "role": ROLES.get(name, "other")}
            for name in names
        ),
        prompts=tuple({"id": f"id{i}", "text": text} for i, text in enumerate(prompts)),
        source="demo:prompts/heldout",
    )


def record(prompt: int, name: str, text: str | None = None) -> AnswerRecord:
    """The made-up answer of TEXTS, or another one."""
    own = TEXTS[prompt % len(TEXTS)][list(LABELS).index(name) if name in LABELS else 0]
    said = own if text is None else text
    return AnswerRecord(prompt, name, said, len(said.split()), True, ids=(1,))


def write_answers(
    run: Path,
    names: Sequence[str] = tuple(LABELS),
    key: str = "k1",
    prompts: int = len(PROMPTS),
    scores: bool = True,
) -> Path:
    """An answers file of the first `prompts` prompts; the header names them all."""
    path = answers_path(run, key)
    with AnswersWriter(path, header(names, key)) as writer:
        for prompt in range(prompts):
            for name in names:
                writer.answers(record(prompt, name))
            if scores:
                logps = {name: {model: -0.5 - i for i, model in enumerate(names)} for name in names}
                writer.scores(prompt, logps)
    return path


def write_verdict(
    run: Path, prompt: str, answers: tuple[str, str], choice: Choice | None, judge: str = "rules"
) -> None:
    """A line of the verdict journal."""
    path = run / "eval" / "verdicts.jsonl"
    path.parent.mkdir(exist_ok=True)
    verdict = Verdict("unparseable") if choice is None else Verdict("ok", choice)
    with path.open("ab") as file:
        file.write(encode_verdict(VerdictRecord("key", verdict, judge, {}, prompt, "?", answers)))

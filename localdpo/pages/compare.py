"""What the template `compare` shows of an answers file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localdpo.core.worddiff import word_diff
from localdpo.records.answers import AnswerRecord, AnswersTail, Header, Sampling, rows_of


def compare_values(tail: AnswersTail) -> dict[str, Any]:
    """The values of the template: every prompt with its answers, words marked beside the reference's answer.

    The reference is the run's start adapter, or the base for a run that started without one; its own answer
    has no marks, nor has the base's beside a start adapter.
    Raises ValueError for a file without a header.
    """
    header = tail.header
    if header is None:
        raise ValueError(f"{tail.path}: no answers to show")
    reference = header.named("start") or header.named("base")
    trained = header.named("trained")
    return {
        "run": header.run,
        "source": header.source or "a file",
        "sampling": sampling_text(header.sampling),
        "labels": list(header.labels.values()),
        "against": None if reference is None else header.labels[reference],
        "trained": None if trained is None else header.labels[trained],
        "prompts": [
            {
                "number": number,
                "id": prompt["id"],
                "text": prompt["text"],
                "differs": _text_of(answers, reference) != _text_of(answers, trained),
                "answers": [_answer(header, answers, name, reference) for name in answers],
            }
            for number, (prompt, answers) in enumerate(
                zip(header.prompts, rows_of(tail), strict=True), start=1
            )
        ],
    }


def sampling_text(sampling: Sampling) -> str:
    """How the answers were drawn, in words."""
    how = (
        f"temperature {sampling.temperature:g}, seed {sampling.seed}"
        if sampling.temperature
        else "likeliest token each time"
    )
    return f"{how}, at most {sampling.max_tokens} tokens"


def _text_of(answers: Mapping[str, AnswerRecord], name: str | None) -> str | None:
    return answers[name].text if name is not None and name in answers else None


def _answer(
    header: Header, answers: Mapping[str, AnswerRecord], name: str, reference: str | None
) -> dict[str, Any]:
    answer = answers[name]
    roles = {str(one["name"]): one["role"] for one in header.contestants}
    is_marked = reference in answers and name != reference and roles[name] != "base"
    pieces = word_diff(answers[reference].text, answer.text) if is_marked and reference else None
    return {
        "label": header.labels[name],
        "tokens": answer.tokens,
        "finished": answer.finished,
        "pieces": pieces or [("same", answer.text)],
        "logps": [(header.labels[model], value) for model, value in answer.logps.items()],
    }

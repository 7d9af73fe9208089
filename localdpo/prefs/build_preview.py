"""What a build would generate, ask and cost at most: `localdpo prefs build --dry-run`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from localdpo.judging.base import Judge, Question
from localdpo.judging.journal import Journal
from localdpo.judging.runner import preview
from localdpo.prefs.build_plan import Plan
from localdpo.prefs.candidates import by_prompt
from localdpo.prefs.judging import questions_of_build
from localdpo.records.answers import AnswerRecord, AnswersTail

# Characters of a token, for the length of an answer that is not there yet.
_CHARACTERS: Final = 5


def preview_lines(plan: Plan) -> list[str]:
    """What the build would generate, ask and cost at most. Writes nothing and asks nobody."""
    tail = AnswersTail(plan.candidates)
    tail.poll()
    wanted = len(plan.prompts) * len(plan.drawing.names)
    there = len(tail.records)
    known = there == wanted
    records = tail.records if known else _longest(plan)
    answers = by_prompt(records, len(plan.prompts), plan.drawing.judged)
    asked, cached, usd = _costs(plan, questions_of_build(plan, answers), known)
    price = "an amount that is not known (no price for this model)" if usd == math.inf else f"${usd:.2f}"
    basis = "" if known else ", were every candidate as long as it may be"
    temperatures = ", ".join(f"{plan.drawing.temperature(name):g}" for name in plan.drawing.names)
    lines = [
        f"prompts: {len(plan.prompts):,} of {plan.options.prompts}",
        f"candidates: {wanted:,} of at most {plan.drawing.max_tokens} tokens at temperature {temperatures}; "
        f"{wanted - there:,} to generate",
        f"judge: {plan.judges.name}, at most {asked:,} verdicts to ask for, {cached:,} there already",
        f"cost: at most {price}{basis}",
    ]
    if plan.options.max_usd is not None:
        lines.append(f"limit: ${plan.options.max_usd:.2f}")
    return lines


def _costs(
    plan: Plan, questions: Iterable[tuple[Judge, list[Question]]], known: bool
) -> tuple[int, int, float]:
    """Questions to ask, answered already, and US dollars at most."""
    journal = Journal(plan.verdicts) if known and plan.verdicts.is_file() else None
    try:
        looks = [preview(judge, asked, journal) for judge, asked in questions]
    finally:
        if journal is not None:
            journal.close()
    return (
        sum(look.asked for look in looks),
        sum(look.cached for look in looks),
        sum(look.worst_usd for look in looks),
    )


def _longest(plan: Plan) -> dict[tuple[int, str], AnswerRecord]:
    """Candidates at the limit of length, no two alike, in the place of those that are not there yet."""
    tokens = plan.drawing.max_tokens
    record = AnswerRecord(0, "", "", tokens, True)
    return {
        (i, name): replace(
            record, prompt_index=i, contestant=name, text=f"{name} ".ljust(tokens * _CHARACTERS, "x")
        )
        for i in range(len(plan.prompts))
        for name in plan.drawing.judged
    }

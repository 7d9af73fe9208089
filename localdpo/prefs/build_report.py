"""The report of a build: as one JSON object, and as lines for a terminal.

    v, key, source, prompts       1; of the candidates; where the prompts came from, how many
    model, adapter, template      as named, with hashes
    drawing                       n, temperatures, max_tokens, seed, constitution of a revision
    judge                         name, rubrics
    candidates                    made, tokens (mean), and by reason those that were not judged
    pairs                         kept, train, valid, by reason the prompts without one, chosen_longer
    margins                       mean, lowest, highest of the kept pairs' scores; null without scores
    temperatures                  [{temperature, made, chosen, rejected, wins, losses, mean_score}]
    winner                        a sentence: which temperature wins
    verdicts                      used, usd, input_tokens, output_tokens

It holds no times and no paths but those that the person gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from localdpo.core.text import format_number
from localdpo.evals.statistics import wilson
from localdpo.judging.panel import add_usage
from localdpo.prefs.build_rows import Built, longer_share
from localdpo.prefs.judging import Outcome
from localdpo.records.answers import AnswerRecord

if TYPE_CHECKING:
    from localdpo.prefs.build_plan import Plan

VERSION: Final = 1
# Above this share of longer chosen answers a model learns to be long.
LONGER_WARNING: Final = 0.6
Answers = Sequence[Mapping[str, AnswerRecord]]


def report_of(
    plan: Plan, answers: Answers, outcome: Outcome, built: Sequence[Built], valid: int
) -> dict[str, Any]:
    """The record of a build, JSON values only; `valid` of the `built` pairs are held out."""
    options, drawing, prints = plan.options, plan.drawing, plan.prints
    made = [answer for of_prompt in answers for answer in of_prompt.values()]
    temperatures = temperature_rows(plan, answers, outcome, built)
    usage = add_usage(outcome.verdicts)
    return {
        "v": VERSION,
        "key": plan.header.key,
        "source": options.prompts,
        "prompts": len(plan.prompts),
        "model": {"name": options.source.model, "fingerprint": prints.model},
        "adapter": {"name": options.source.adapter, "fingerprint": prints.adapter},
        "template": {"choice": options.source.template, "fingerprint": prints.template},
        "drawing": {
            "n": drawing.count,
            "temperatures": list(drawing.temperatures),
            "max_tokens": drawing.max_tokens,
            "seed": drawing.seed,
            "revise": None if drawing.revise is None else drawing.revise.name,
        },
        "judge": {"name": plan.judges.name, "rubrics": list(plan.judges.rubrics)},
        "candidates": {
            "made": len(made),
            "tokens": fmean(answer.tokens for answer in made),
            "not_judged": dict(outcome.candidates.most_common()),
        },
        "pairs": {
            "kept": len(built),
            "train": len(built) - valid,
            "valid": valid,
            "beyond_keep": len(outcome.built) - len(built),
            "dropped": dict(outcome.pairs.most_common()),
            "chosen_longer": longer_share(_lengths(answers, built)),
        },
        "margins": _margins(built),
        "temperatures": temperatures,
        "winner": winner(temperatures) if drawing.revise is None else None,
        "verdicts": {
            "used": len(outcome.verdicts),
            "usd": usage.usd,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        },
    }


def temperature_rows(
    plan: Plan, answers: Answers, outcome: Outcome, built: Sequence[Built]
) -> list[dict[str, Any]]:
    """For each temperature how its candidates did.

    chosen, rejected: sides of kept pairs. wins, losses: those of pairs between two temperatures.
    """
    drawing = plan.drawing
    rows = []
    for temperature in dict.fromkeys(drawing.temperatures):
        names = [name for name in drawing.judged if drawing.temperature(name) == temperature]
        sides = [(one.pair.chosen in names, one.pair.rejected in names) for one in built]
        scores = [score for name in names for score in outcome.scores.get(name, ())]
        rows.append(
            {
                "temperature": temperature,
                "made": len(names) * len(answers),
                "chosen": sum(chosen for chosen, _ in sides),
                "rejected": sum(rejected for _, rejected in sides),
                "wins": sum(chosen and not rejected for chosen, rejected in sides),
                "losses": sum(rejected and not chosen for chosen, rejected in sides),
                "mean_score": fmean(scores) if scores else None,
            }
        )
    return rows


def winner(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Which temperature wins, with its 95% Wilson interval; None when there is only one."""
    if len(rows) < 2:
        return None
    played = [row for row in rows if row["wins"] + row["losses"]]
    if not played:
        return "no pair is between two temperatures"
    best = max(played, key=lambda row: (row["wins"] / (row["wins"] + row["losses"]), row["wins"]))
    n = best["wins"] + best["losses"]
    rate = wilson(best["wins"] / n, n)
    of = f"{best['wins']:,} of {n:,} pairs with another ({rate.low:.0%} to {rate.high:.0%})"
    if rate.low is not None and rate.low > 0.5:
        return f"temperature {best['temperature']:g} wins: {of}"
    return f"no temperature clearly wins; {best['temperature']:g} does best: {of}"


def _lengths(answers: Answers, built: Sequence[Built]) -> list[tuple[int, int]]:
    """Tokens of the chosen and of the rejected answer of each pair."""
    return [
        (answers[one.pair.prompt][one.pair.chosen].tokens, answers[one.pair.prompt][one.pair.rejected].tokens)
        for one in built
    ]


def _margins(built: Sequence[Built]) -> dict[str, float] | None:
    margins = [one.pair.scores[0] - one.pair.scores[1] for one in built if one.pair.scores is not None]
    return {"mean": fmean(margins), "lowest": min(margins), "highest": max(margins)} if margins else None


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a terminal."""
    pairs, candidates = report["pairs"], report["candidates"]
    lines = [
        f"prompts: {report['prompts']:,} of {report['source']}",
        f"candidates: {candidates['made']:,}, {candidates['tokens']:.0f} tokens on average",
        *_counted(candidates["not_judged"]),
        f"pairs: {pairs['kept']:,} ({pairs['train']:,} to train on, {pairs['valid']:,} held out)",
    ]
    if pairs["beyond_keep"]:
        lines.append(f"  {pairs['beyond_keep']:,} more were good and are beyond --keep")
    lines += _counted(pairs["dropped"])
    if report["margins"] is not None:
        margins = {name: format_number(value) for name, value in report["margins"].items()}
        lines.append(f"margins: {margins['mean']} on average, {margins['lowest']} to {margins['highest']}")
    if pairs["chosen_longer"] is not None:
        share = pairs["chosen_longer"]
        warning = "; a model trained on them learns to be long" if share > LONGER_WARNING else ""
        lines.append(f"chosen longer: {share:.0%} of the pairs{warning}")
    if report["winner"] is not None:
        lines.append(report["winner"])
        lines.append("  pairs between two temperatures also teach to prefer the one that wins")
    verdicts = report["verdicts"]
    lines.append(f"judge: {report['judge']['name']}, {verdicts['used']:,} verdicts, ${verdicts['usd']:.4f}")
    return lines


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"  {count:,} dropped: {reason}" for reason, count in counts.items()]

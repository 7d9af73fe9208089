"""What a build writes: its rows, and its report as one JSON object and as lines for a terminal.

    v, key, source, prompts       1; of the candidates; where the prompts came from, how many
    model, adapter, template      as named, with hashes
    drawing                       n, temperatures, max_tokens, min_words, seed, constitution of a revision
    judge                         name, rubrics; with a penalty missing_eos_penalty
    candidates                    made, tokens (mean), and by reason those that were not judged; with a
                                  penalty cut: those that were cut and are judged
    pairs                         kept, train, valid, by reason the prompts without one, chosen_longer,
                                  chosen_tokens and rejected_tokens (means); with a penalty rejected_cut:
                                  those whose rejected answer was cut
    margins                       mean, lowest, highest of the kept pairs' scores; null without scores
    temperatures                  [{temperature, made, chosen, rejected, wins, losses, mean_score}], scores as
                                  the judge gave them
    winner                        a sentence: which temperature wins
    verdicts                      used, usd, input_tokens, output_tokens

The report holds no times and no paths but those that the person gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from localdpo.core.text import counted, format_number
from localdpo.data.fields import CUT, FINISH_REASON, OPTIONS
from localdpo.evals.statistics import wilson
from localdpo.judging.panel import add_usage
from localdpo.prefs.selection import BuildOutcome, BuiltPair, Candidates, UsedVerdict, text_of

if TYPE_CHECKING:
    from localdpo.prefs.build_plan import BuildPlan

VERSION: Final = 1
UNSCORED_COLUMNS: Final = ("prompt", "chosen", "rejected", "provenance")
OWN_COLUMNS: Final = (*UNSCORED_COLUMNS, FINISH_REASON, "score_chosen", "score_rejected", "margin")
HASH_DIGITS: Final = 16
# Above this share of longer chosen answers a model learns to be long.
LONGER_WARNING: Final = 0.6


def rows_of_build(plan: BuildPlan, answers: Candidates, built: Sequence[BuiltPair]) -> list[dict[str, Any]]:
    """The rows of the pairs.

    The prompt's other columns go along, but those that a pair has itself. `margin` is the chosen score less
    the rejected one; the penalty of an answer that was cut is taken from both. `provenance` holds hashes,
    sampling and judge, the prompt's id, of each side the candidate, its temperature and tokens, the verdicts,
    and what they cost in US dollars.
    """
    sampling, hashes = plan.sampling, plan.hashes
    penalty = plan.options.missing_eos_penalty
    common = {
        "model": hashes.model[:HASH_DIGITS],
        "adapter": hashes.adapter and hashes.adapter[:HASH_DIGITS],
        "template": hashes.template[:HASH_DIGITS],
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "judge": plan.judge_name,
        "rubric": " and ".join(plan.rubrics) or None,
        **({} if penalty is None else {"missing_eos_penalty": penalty}),
    }
    rows = []
    for pair in built:
        prompt, texts = plan.prompts[pair.prompt], answers[pair.prompt]
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        row: dict[str, Any] = {"prompt": prompt.prompt}
        row |= {name: value for name, value in prompt.facts.items() if name not in OWN_COLUMNS}
        row |= {name: value for name, value in zip(OPTIONS, prompt.options, strict=True) if value}
        for side, name in sides.items():
            text = text_of(texts[name])
            # In the prompt's own form.
            is_text = isinstance(prompt.prompt, str)
            row[side] = text if is_text else [{"role": "assistant", "content": text}]
        if not texts[pair.rejected].finished:
            row[FINISH_REASON] = CUT
        if pair.scores is not None:
            chosen, rejected = pair.scores
            row |= {"score_chosen": chosen, "score_rejected": rejected, "margin": chosen - rejected}
        row["provenance"] = {
            "prompt": prompt.id,
            **common,
            **{
                side: {
                    "candidate": name,
                    "temperature": sampling.temperature(name),
                    "tokens": texts[name].tokens,
                }
                for side, name in sides.items()
            },
            "verdicts": [_verdict(used) for used in pair.used],
            "usd": sum(used.verdict.usage.usd for used in pair.used),
        }
        rows.append(row)
    return rows


def _verdict(used: UsedVerdict) -> dict[str, Any]:
    """What was asked and said, without the judge's words; they are in the journal."""
    verdict = used.verdict
    said: dict[str, Any] = {"of": list(used.names)}
    said |= {"choice": verdict.choice} if len(used.names) == 2 else {"score": verdict.score}
    return said if verdict.principle is None else said | {"principle": verdict.principle}


def report_of(
    plan: BuildPlan, answers: Candidates, outcome: BuildOutcome, built: Sequence[BuiltPair], valid: int
) -> dict[str, Any]:
    """The record of a build, JSON values only; `valid` of the `built` pairs are held out."""
    options, sampling, hashes = plan.options, plan.sampling, plan.hashes
    made = [answer for of_prompt in answers for answer in of_prompt.values()]
    temperatures = temperature_rows(plan, answers, outcome, built)
    usage = add_usage(outcome.verdicts)
    penalty = options.missing_eos_penalty
    sides = [[answers[pair.prompt][name] for name in (pair.chosen, pair.rejected)] for pair in built]
    longer = sum(chosen.tokens > rejected.tokens for chosen, rejected in sides)
    margins = [pair.scores[0] - pair.scores[1] for pair in built if pair.scores is not None]
    return {
        "v": VERSION,
        "key": plan.header.key,
        "source": options.prompts,
        "prompts": len(plan.prompts),
        "model": {"name": options.source.model, "fingerprint": hashes.model},
        "adapter": {"name": options.source.adapter, "fingerprint": hashes.adapter},
        "template": {"choice": options.source.template, "fingerprint": hashes.template},
        "drawing": {
            "n": sampling.count,
            "temperatures": list(sampling.temperatures),
            "max_tokens": sampling.max_tokens,
            "min_words": options.min_words,
            "seed": sampling.seed,
            "revise": None if sampling.revise is None else sampling.revise.name,
        },
        "judge": {
            "name": plan.judge_name,
            "rubrics": list(plan.rubrics),
            **({} if penalty is None else {"missing_eos_penalty": penalty}),
        },
        "candidates": {
            "made": len(made),
            "tokens": fmean(answer.tokens for answer in made),
            "not_judged": dict(outcome.candidates.most_common()),
            **({} if penalty is None else {"cut": outcome.cut}),
        },
        "pairs": {
            "kept": len(built),
            "train": len(built) - valid,
            "valid": valid,
            "beyond_keep": len(outcome.built) - len(built),
            "dropped": dict(outcome.pairs.most_common()),
            "chosen_longer": longer / len(built) if built else None,
            "chosen_tokens": fmean(chosen.tokens for chosen, _ in sides) if built else None,
            "rejected_tokens": fmean(rejected.tokens for _, rejected in sides) if built else None,
            **({} if penalty is None else {"rejected_cut": sum(not side.finished for _, side in sides)}),
        },
        "margins": {"mean": fmean(margins), "lowest": min(margins), "highest": max(margins)}
        if margins
        else None,
        "temperatures": temperatures,
        "winner": winner(temperatures) if sampling.revise is None else None,
        "verdicts": {
            "used": len(outcome.verdicts),
            "usd": usage.usd,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        },
    }


def temperature_rows(
    plan: BuildPlan, answers: Candidates, outcome: BuildOutcome, built: Sequence[BuiltPair]
) -> list[dict[str, Any]]:
    """For each temperature how its candidates did.

    chosen, rejected: sides of kept pairs. wins, losses: those of pairs between two temperatures.
    """
    sampling = plan.sampling
    rows = []
    for temperature in dict.fromkeys(sampling.temperatures):
        names = [name for name in sampling.judged if sampling.temperature(name) == temperature]
        sides = [(pair.chosen in names, pair.rejected in names) for pair in built]
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


def report_lines(report: Mapping[str, Any]) -> list[str]:
    pairs, candidates = report["pairs"], report["candidates"]
    lines = [
        f"prompts: {report['prompts']:,} of {report['source']}",
        f"candidates: {candidates['made']:,}, {candidates['tokens']:.0f} tokens on average",
        *_counted(candidates["not_judged"]),
    ]
    if "cut" in candidates:
        lines.append(f"  {candidates['cut']:,} judged that were cut at the limit of tokens")
    lines.append(f"pairs: {pairs['kept']:,} ({pairs['train']:,} to train on, {pairs['valid']:,} held out)")
    if pairs["beyond_keep"]:
        lines.append(f"  {pairs['beyond_keep']:,} more were good and are beyond --keep")
    lines += _counted(pairs["dropped"])
    if "rejected_cut" in pairs:
        lines.append(f"  {pairs['rejected_cut']:,} have a rejected answer that was cut")
    if report["margins"] is not None:
        margins = {name: format_number(value) for name, value in report["margins"].items()}
        lines.append(f"margins: {margins['mean']} on average, {margins['lowest']} to {margins['highest']}")
    if pairs["chosen_longer"] is not None:
        share = pairs["chosen_longer"]
        warning = "; a model trained on them learns to be long" if share > LONGER_WARNING else ""
        tokens = f"{pairs['chosen_tokens']:.1f} tokens chosen, {pairs['rejected_tokens']:.1f} rejected"
        lines.append(f"lengths: {tokens}; chosen longer in {share:.0%} of the pairs{warning}")
    if report["winner"] is not None:
        lines.append(report["winner"])
        lines.append("  pairs between two temperatures also teach to prefer the one that wins")
    verdicts = report["verdicts"]
    lines.append(
        f"judge: {report['judge']['name']}, {counted(verdicts['used'], 'verdict')}, ${verdicts['usd']:.4f}"
    )
    return lines


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"  {count:,} dropped: {reason}" for reason, count in counts.items()]

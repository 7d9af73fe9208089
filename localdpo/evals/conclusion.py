"""What an evaluation says in plain words, and what stands against believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

MANY_INVALID: Final = 0.05
MANY_FLIPS: Final = 0.2


def conclusion(
    metrics: Sequence[Mapping[str, Any]],
    duels: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    versus: tuple[str, str],
) -> list[str]:
    """One sentence on the first duel, one on the metrics, then every caution that applies."""
    before, after = (labels[name] for name in versus)
    lines = [duel_sentence(duels[0], labels)] if duels else []
    lines.append(_metrics_sentence(metrics, before, after))
    for duel in duels[:1]:
        lines += _cautions(duel, labels)
    return lines


def duel_sentence(duel: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Who was preferred, or why nothing can be said."""
    first, second = labels[duel["first"]], labels[duel["second"]]
    rate = duel["win_rate"]
    if duel["identical"] == duel["prompts"]:
        return f"No verdict: {first} and {second} gave the same answer to all of {duel['prompts']} prompts."
    if rate is None or duel["valid"] == duel["identical"]:
        differing = duel["prompts"] - duel["identical"]
        return f"No verdict on {first} against {second}: not one of {differing} differing answers was judged."
    told = f"{_percent(rate['value'])} of {duel['valid']} prompts, interval {_interval(rate)}"
    if rate["low"] > 0.5:
        return f"{first} is preferred to {second}: {told}."
    if rate["high"] < 0.5:
        return f"{first} is worse than {second}: preferred on {told}."
    needed = duel["prompts_needed"]
    hint = (
        f" If the true rate were this one, about {needed:,} prompts would be needed to tell."
        if needed is not None and needed > duel["valid"]
        else ""
    )
    return f"No verdict: {first} is preferred to {second} on {told}, which holds 50.{hint}"


def _metrics_sentence(metrics: Sequence[Mapping[str, Any]], before: str, after: str) -> str:
    told = {
        which: [f"{row['name']} ({_signed(row)})" for row in metrics if row["reading"] == which]
        for which in ("better", "worse")
    }
    better = ", ".join(told["better"]) or "nothing"
    worse = ", ".join(told["worse"]) or "nothing"
    return f"{after} against {before}, beyond the interval, better: {better}; worse: {worse}."


def _cautions(duel: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    found = []
    invalid = duel["prompts"] - duel["valid"]
    if invalid > MANY_INVALID * duel["prompts"]:
        whys = ", ".join(f"{status} {count}" for status, count in duel["statuses"].items())
        why = f"; most often: {duel['why']}" if duel["why"] else ""
        found.append(f"Caution: {invalid} of {duel['prompts']} prompts have no valid verdict ({whys}){why}.")
    asked = duel["valid"] - duel["identical"]
    if asked and duel["flips"] > MANY_FLIPS * asked:
        share = _percent(duel["flips"] / asked)
        found.append(f"Caution: on {share} of the prompts the judge changed its mind with the order.")
    bias = duel["position_bias"]
    if bias is not None and bias["flagged"]:
        side = "first" if bias["value"] > 0 else "second"
        points = f"{100 * abs(bias['value']):.1f} points"
        found.append(f"Caution: the judge favours the answer shown {side}, by {points}.")
    found += _length_caution(duel, labels)
    return found


def _length_caution(duel: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Where the verdict does not survive the control for length."""
    rate, controlled = duel["win_rate"], (duel["length_controlled"] or {}).get("rate")
    if rate is None or controlled is None:
        return []
    holds = [each["low"] <= 0.5 <= each["high"] for each in (rate, controlled)]
    if holds[0] or not (holds[1] or (rate["value"] > 0.5) != (controlled["value"] > 0.5)):
        return []
    told = f"{_percent(controlled['value'])}, interval {_interval(controlled)}"
    return [f"Caution: at equal lengths {labels[duel['first']]} would win {told}: length may be why."]


def _signed(row: Mapping[str, Any]) -> str:
    return f"{row['difference']['value']:+.{row['digits']}f}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"

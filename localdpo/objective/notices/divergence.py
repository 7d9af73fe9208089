"""Rules about numbers that run away: NaN, KL, displacement."""

from __future__ import annotations

import math
import statistics

from localdpo.objective.notices.history import History, Notice, last_step, rises, values_of

# A KL figure is a spike against the median of what came before it: 3 times for a warning, 10 times for
# critical, in 5 logs in a row, so that one odd batch is no alarm.
KL_WARNING_RATIO = 3.0
KL_CRITICAL_RATIO = 10.0
KL_LOGS_IN_A_ROW = 5
KL_MEDIAN_LOGS = 20
KL_MEDIAN_LOGS_MIN = 5
KL_FLOOR = 0.1  # nats per token; KL starts at 0, where any growth is a large multiple
# Likelihood displacement (Razin et al. 2024, arXiv 2410.08847). Past 0.1 nat per token the chosen responses
# are about 10% less likely in every token.
DISPLACEMENT_WINDOW = 20
DISPLACEMENT_INFO = 0.03  # nats per token below the reference
DISPLACEMENT_WARNING = 0.1


def not_finite(history: History) -> Notice | None:
    for records, where in ((history.train, "in training"), (history.evals, "in the evaluation")):
        if not records:
            continue
        step, metrics = records[-1]
        bad = [name for name, value in metrics.items() if value is None or not math.isfinite(value)]
        if bad:
            return Notice(
                "nan",
                "critical",
                step,
                f"{', '.join(bad)} not finite {where} at step {step}",
                "A NaN or an infinity in the loss or the gradient spreads to every weight at the next "
                "update; nothing after this step is of use.",
                "Resume from the last checkpoint with a lower train.learning_rate or train.max_grad_norm; "
                "if it is there at the first step, look at the row of that batch.",
            )
    return None


def kl_spike(history: History) -> Notice | None:
    values = values_of(history.train, "kl", KL_MEDIAN_LOGS + KL_LOGS_IN_A_ROW)
    before, last = values[:-KL_LOGS_IN_A_ROW], values[-KL_LOGS_IN_A_ROW:]
    if len(before) < KL_MEDIAN_LOGS_MIN or min(last) <= KL_FLOOR:
        return None
    median = statistics.median(before)
    if min(last) <= KL_WARNING_RATIO * median:
        return None
    return Notice(
        "kl-spike",
        "critical" if min(last) > KL_CRITICAL_RATIO * median else "warning",
        last_step(history),
        f"KL to the reference at {last[-1]:.3g} nats per token, median before {median:.3g}",
        "The policy is leaving the reference fast. Rewards keep growing out there while answers get worse, "
        "because the data says nothing about such text.",
        "Lower train.learning_rate or raise loss.beta, and compare the samples with those of an earlier "
        "checkpoint.",
    )


def displacement(history: History) -> Notice | None:
    chosen = values_of(history.train, "logratio_per_token/chosen", DISPLACEMENT_WINDOW)
    margins = values_of(history.train, "rewards/margins", DISPLACEMENT_WINDOW)
    if len(chosen) < DISPLACEMENT_WINDOW or len(margins) < DISPLACEMENT_WINDOW:
        return None
    fall = -statistics.fmean(chosen[DISPLACEMENT_WINDOW // 2 :])
    falling_while_margin_rises = not rises(chosen) and rises(margins)
    if fall < DISPLACEMENT_INFO or (fall < DISPLACEMENT_WARNING and not falling_while_margin_rises):
        return None
    return Notice(
        "displacement",
        "warning" if fall >= DISPLACEMENT_WARNING else "info",
        last_step(history),
        f"Chosen responses {fall:.2g} nats per token less likely than under the reference",
        "The margin grows because rejected responses fall faster than chosen ones. The probability that "
        "both lose goes to other text, which no pair has judged.",
        "Lower train.learning_rate, raise loss.beta, or take a loss that holds the chosen response up "
        "(dpop, apo_zero, nca_pair, or an SFT term).",
    )

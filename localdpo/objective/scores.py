"""What every preference loss starts from: log-ratios, margins and implicit rewards of a batch.

Notation, here and in `losses/`: for pair i, `p_w, p_l` are the policy's log-probabilities of the chosen and
the rejected response (summed over the scored tokens, nats), `r_w, r_l` the same under the frozen reference,
`w = p_w - r_w`, `l = p_l - r_l`, `h = w - l`, and `|w|, |l|` the numbers of scored tokens. B is the number of
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


def log_ratios(policy: mx.array, reference: mx.array) -> mx.array:
    """ln(policy / reference) of whole responses, [B] nats, in float32 whatever the inputs' type.

    The cast comes before the subtraction: two bfloat16 sums of 512 nats are known to 2 nats only.
    """
    return policy.astype(mx.float32) - reference.astype(mx.float32)


def rewards(policy: mx.array, reference: mx.array, beta: float) -> mx.array:
    """Implicit rewards beta * ln(policy / reference), [B] (Rafailov et al. 2023, eq. 5; no prompt term)."""
    return beta * log_ratios(policy, reference)


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of B pairs, each field a float32 array [B].

    The token counts are None for a caller that does not have them; losses that need them say so in the
    registry (`needs_tokens`), and the dispatcher refuses to call them without.
    """

    policy_chosen: mx.array
    policy_rejected: mx.array
    ref_chosen: mx.array
    ref_rejected: mx.array
    chosen_tokens: mx.array | None = None
    rejected_tokens: mx.array | None = None

    @property
    def w(self) -> mx.array:
        """Log-ratio of the chosen responses, [B] nats."""
        return log_ratios(self.policy_chosen, self.ref_chosen)

    @property
    def l(self) -> mx.array:  # noqa: E743 - the papers' letter
        """Log-ratio of the rejected responses, [B] nats."""
        return log_ratios(self.policy_rejected, self.ref_rejected)

    @property
    def h(self) -> mx.array:
        """Margin w - l of the log-ratios, [B] nats."""
        return self.w - self.l

    @property
    def token_counts(self) -> tuple[mx.array, mx.array]:
        """(|w|, |l|), float32 [B]; ValueError where the caller gave none."""
        if self.chosen_tokens is None or self.rejected_tokens is None:
            raise ValueError("this loss divides by token counts: pass chosen_tokens and rejected_tokens")
        return self.chosen_tokens, self.rejected_tokens


@dataclass(frozen=True)
class UnpairedScores:
    """Log-probabilities of B single responses under policy and reference, float32 [B] nats each.

    desirable: bool [B]. baseline: the KL baseline z of the whole step, a scalar in nats; None for a caller
    that does not have it, which `needs_baseline` in the registry tells.
    """

    policy: mx.array
    reference: mx.array
    desirable: mx.array
    baseline: mx.array | None = None

    @property
    def h(self) -> mx.array:
        """Log-ratio of the responses, [B] nats."""
        return log_ratios(self.policy, self.reference)

    @property
    def z(self) -> mx.array:
        """The KL baseline, a scalar in nats; ValueError where the caller gave none."""
        if self.baseline is None:
            raise ValueError("this loss compares with the KL baseline: pass baseline")
        return self.baseline

"""What every loss and metric starts from: log-probabilities of responses, and what follows from them.

Notation, here and in `losses/`: for pair i, `p_w, p_l` are the policy's log-probabilities of the chosen and
the rejected response (summed over the scored tokens, nats), `r_w, r_l` the same under the frozen reference,
`w = p_w - r_w`, `l = p_l - r_l`, `h = w - l`, and `|w|, |l|` the numbers of scored tokens.

Shape legend: B pairs or rows, N responses (2 B for pairs: all chosen ones, then all rejected ones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Final

import mlx.core as mx

from localdpo.objective.numerics import divergence_score


@dataclass(frozen=True)
class ResponseScores:
    """What is known of N responses, an array [N] each; None for what the caller does not have.

    Attributes:
        policy, reference: log-probabilities in nats, summed over the scored tokens.
        tokens: numbers of scored tokens, at least 1 each.
        policy_public, reference_public: the sums over the first min(|w|, |l|) tokens only, which both
            responses of a pair have (LD-DPO).
        alignment: mean over the tokens of ln p(token) - ln sum_v p_v^2 under the policy (WPO).
    """

    policy: mx.array
    reference: mx.array | None = None
    tokens: mx.array | None = None
    policy_public: mx.array | None = None
    reference_public: mx.array | None = None
    alignment: mx.array | None = None

    def arrays(self) -> Iterator[tuple[str, mx.array]]:
        """The arrays that are there, by name."""
        for field in fields(self):
            array = getattr(self, field.name)
            if array is not None:
                yield field.name, array

    def float32(self) -> ResponseScores:
        return ResponseScores(**{name: array.astype(mx.float32) for name, array in self.arrays()})

    def rows(self, start: int, stop: int) -> ResponseScores:
        """The responses from `start` up to `stop`."""
        return ResponseScores(**{name: array[start:stop] for name, array in self.arrays()})

    @property
    def log_ratio(self) -> mx.array:
        """ln(policy / reference), [N] nats, float32 whatever they are; ValueError without a reference.

        The cast comes before the subtraction: two bfloat16 sums of 512 nats are known to 2 nats only.
        """
        if self.reference is None:
            raise ValueError("this loss compares with a reference: pass its log-probabilities")
        return self.policy.astype(mx.float32) - self.reference.astype(mx.float32)

    @property
    def length(self) -> mx.array:
        """Numbers of scored tokens, [N]; ValueError where the caller gave none."""
        if self.tokens is None:
            raise ValueError("this loss divides by token counts: pass chosen_tokens and rejected_tokens")
        return self.tokens

    def under(self, reference: mx.array | None, public: mx.array | None = None) -> ResponseScores:
        """The same responses with the log-probabilities that a reference gives them."""
        return replace(self, reference=reference, reference_public=public)

    def with_uniform_reference(self) -> ResponseScores:
        """As Mitchell's code takes the uniform reference: 0 for every response, whatever its length."""
        zeros = mx.zeros(self.policy.shape, dtype=mx.float32)
        return self.under(zeros, zeros)

    def length_desensitised(self, alpha: float) -> ResponseScores:
        """public + alpha (total - public): log-probabilities whose tail counts `alpha` times, [N] nats.

        Liu et al. 2024 (LD-DPO), arXiv 2409.06411. alpha = 1 is DPO; at 0 what the longer response has beyond
        the shorter one counts nothing. Policy and reference are treated the same way.
        """
        assert self.policy_public is not None
        policy = self.policy_public + alpha * (self.policy - self.policy_public)
        assert self.reference is not None
        assert self.reference_public is not None
        reference = self.reference_public + alpha * (self.reference - self.reference_public)
        return replace(self, policy=policy, reference=reference)


# What `preference_loss` calls the fields of ResponseScores, by side.
_PAIR_NAMES: Final = {
    "policy": "policy_{}",
    "reference": "ref_{}",
    "tokens": "{}_tokens",
    "policy_public": "public policy_{}",
    "reference_public": "public ref_{}",
    "alignment": "alignment of {}",
}


@dataclass(frozen=True)
class PairScores:
    """The two responses of B pairs.

    Attributes:
        divergence, divergence_alpha: the f-divergence from the reference that rewards are derived from (see
            `numerics.divergence_score`); for losses that read nothing but `w`, `l` and `h`.
    """

    chosen: ResponseScores
    rejected: ResponseScores
    divergence: str = "reverse_kl"
    divergence_alpha: float = 0.5

    @classmethod
    def of_responses(cls, scores: ResponseScores) -> PairScores:
        """The pairs of N = 2 B responses: the chosen ones, then the rejected ones."""
        pairs = scores.policy.shape[0] // 2
        return cls(scores.rows(0, pairs), scores.rows(pairs, 2 * pairs))

    @property
    def w(self) -> mx.array:
        """Log-ratio of the chosen responses, or what the f-divergence has in its place, [B] nats."""
        return divergence_score(self.chosen.log_ratio, self.divergence, self.divergence_alpha)

    @property
    def l(self) -> mx.array:  # noqa: E743 - the papers' letter
        """The same of the rejected responses, [B] nats."""
        return divergence_score(self.rejected.log_ratio, self.divergence, self.divergence_alpha)

    @property
    def h(self) -> mx.array:
        """Margin w - l, [B] nats."""
        return self.w - self.l

    def named(self) -> dict[str, mx.array]:
        """Every array that is there, by the names of `preference_loss`."""
        sides = (("chosen", self.chosen), ("rejected", self.rejected))
        return {
            _PAIR_NAMES[name].format(side): array for side, scores in sides for name, array in scores.arrays()
        }

    def float32(self, caller: str) -> PairScores:
        """The same in float32. ValueError that begins with `caller` unless all arrays have one shape [B]."""
        shape = self.chosen.policy.shape
        if len(shape) != 1:
            raise ValueError(f"{caller}: expected policy_chosen of shape [B], got {shape}")
        for name, array in self.named().items():
            if array.shape != shape:
                raise ValueError(f"{caller}: expected {name} of shape {shape}, got {array.shape}")
        return self.of_each(ResponseScores.float32)

    def of_each(self, change: Callable[[ResponseScores], ResponseScores]) -> PairScores:
        """The pairs of the changed responses."""
        return replace(self, chosen=change(self.chosen), rejected=change(self.rejected))

    def rewards(self, beta: float) -> tuple[mx.array, mx.array]:
        """Implicit rewards (chosen, rejected), [B]: beta ln(policy / reference).

        Rafailov et al. 2023, eq. 5, without the prompt's term, and always of the plain log-ratio. Without a
        reference the reward is beta p / |y| (SimPO's, and what TRL reports for it).
        """
        if self.chosen.reference is None:
            chosen, rejected = self.chosen, self.rejected
            return beta * chosen.policy / chosen.length, beta * rejected.policy / rejected.length
        return beta * self.chosen.log_ratio, beta * self.rejected.log_ratio

    def weights(self) -> mx.array:
        """min(1, e^(a_w + a_l)), [B]: how much each pair resembles the policy's own samples, no gradient.

        Zhou et al. 2024 (WPO), arXiv 2406.11827, eq. 2 with sampled alignment a, which is 0 in expectation
        for tokens that the policy would draw. Clamped at 1 as in the paper's code and in TRL.
        """
        chosen, rejected = self.chosen.alignment, self.rejected.alignment
        assert chosen is not None
        assert rejected is not None
        return mx.stop_gradient(mx.minimum(mx.exp(chosen + rejected), 1.0))


@dataclass(frozen=True)
class UnpairedScores:
    """B single responses with a label.

    Attributes:
        desirable: bool [B].
        baseline: the KL baseline z of the whole step, a scalar in nats without gradient; None for a caller
            that does not have it.
    """

    responses: ResponseScores
    desirable: mx.array
    baseline: mx.array | None = None

    @property
    def h(self) -> mx.array:
        """Log-ratio of the responses, [B] nats."""
        return self.responses.log_ratio

    @property
    def z(self) -> mx.array:
        """The KL baseline, a scalar in nats; ValueError where the caller gave none."""
        if self.baseline is None:
            raise ValueError("this loss compares with the KL baseline: pass baseline")
        return self.baseline

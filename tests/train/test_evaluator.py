"""Held-out metrics against NumPy, the exact KL against full softmaxes, and samples that disturb nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny_folders import recipe_text, write_pairs, write_rows
from training_runs import EAGER, assert_same_arrays, files_of, session_of, train, weights_of

from localdpo.model import lora
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.forward import Forward
from localdpo.model.generate import SampledAnswer, generate
from localdpo.train import evaluator
from localdpo.train.assemble import Session
from localdpo.train.evaluator import Sampler, WatchedPrompt, evaluate, exact_kl, mean_entropy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
BETA = 0.1


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 11)


def moved(session: Session, scale: float = 0.05, seed: int = 2) -> None:
    """Take the policy away from the reference."""
    rng = np.random.default_rng(seed)
    weights = weights_of(session)
    noisy = [
        (name, mx.array(w + rng.normal(size=w.shape).astype(np.float32) * scale))
        for name, w in weights.items()
        if name.endswith("lora_b")
    ]
    session.base.model.load_weights(noisy, strict=False)


def row_tokens(session: Session, index: int) -> list[np.ndarray]:
    """Log-probabilities of the tokens of a row's responses by one unpadded forward each, in float64."""
    row = session.valid.store[index]
    found = []
    for response in row.responses:
        ids = np.concatenate([row.prompt, response])
        logps = _log_softmax(session.base.model(mx.array(ids[None, :-1])))
        picked = logps[np.arange(len(ids) - 1), ids[1:]]
        found.append(picked[len(row.prompt) - 1 :])
    return found


def row_logps(session: Session, index: int) -> list[float]:
    """Their sums, a response each."""
    return [float(tokens.sum()) for tokens in row_tokens(session, index)]


def _log_softmax(logits: mx.array) -> np.ndarray:
    z = np.array(logits[0].astype(mx.float32)).astype(np.float64)
    z -= z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_metrics_equal_those_of_the_rows_in_numpy(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """11 rows in batches of 4: the ragged last batch weighs what its rows weigh."""
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    scores = session.valid_scores
    assert scores is not None
    scores.values[:] = [row_logps(session, i) for i in range(11)]
    moved(session)
    found = evaluate(replace(session, scoring_batch=4), 1).metrics
    policy = np.array([row_logps(session, i) for i in range(11)])
    ratio = policy - scores.values.astype(np.float64)
    margin = BETA * (ratio[:, 0] - ratio[:, 1])
    expected = {
        "loss": np.log1p(np.exp(-margin)).mean(),
        "rewards/chosen": BETA * ratio[:, 0].mean(),
        "rewards/rejected": BETA * ratio[:, 1].mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": (margin > 0).mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "displacement": (ratio[:, 0] < 0).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.abs(margin).min() > 1e-3


def test_a_desensitised_loss_counts_the_tail_alpha_times_and_rewards_stay_whole(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    options = {"adapter": str(sft_adapter), "loss": {"ld_alpha": 0.25}}
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, **options))
    scores = session.valid_scores
    assert scores is not None
    reference = [row_tokens(session, i) for i in range(11)]
    lengths = [min(map(len, row)) for row in reference]
    scores.values[:] = [
        [(tokens.sum(), tokens[:n].sum()) for tokens in row]
        for row, n in zip(reference, lengths, strict=True)
    ]
    moved(session)
    found = evaluate(replace(session, scoring_batch=4), 1).metrics
    margins, rewards = [], []
    for i, (before, n) in enumerate(zip(reference, lengths, strict=True)):
        gaps = [now - then for now, then in zip(row_tokens(session, i), before, strict=True)]
        w, l = (gap[:n].sum() + 0.25 * gap[n:].sum() for gap in gaps)  # noqa: E741 - the papers' letters
        margins.append(BETA * (w - l))
        rewards.append(BETA * gaps[0].sum())
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-np.array(margins))).mean(), rel=1e-4)
    assert found["rewards/chosen"] == pytest.approx(np.mean(rewards), rel=1e-4, abs=1e-5)


def test_a_weighed_loss_is_that_of_the_full_distributions_in_numpy(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    options = {"adapter": str(sft_adapter), "loss": {"use_weighting": True}}
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, **options))
    scores = session.valid_scores
    assert scores is not None
    scores.values[:] = [row_logps(session, i) for i in range(11)]
    moved(session)
    found = evaluate(replace(session, scoring_batch=4), 1).metrics
    losses, weights = [], []
    for i in range(11):
        row, alignment = session.valid.store[i], 0.0
        for response in row.responses:
            ids = np.concatenate([row.prompt, response])
            logps = _log_softmax(session.base.model(mx.array(ids[None, :-1])))[len(row.prompt) - 1 :]
            own = logps[np.arange(len(response)), response]
            alignment += (own - np.log(np.exp(2 * logps).sum(-1))).mean()
        w, l = np.array(row_logps(session, i)) - scores.values[i]  # noqa: E741 - the papers' letters
        weights.append(min(1.0, np.exp(alignment)))
        losses.append(np.log1p(np.exp(-BETA * (w - l))))
    assert found["loss"] == pytest.approx(np.mean(np.multiply(weights, losses)), rel=1e-4)
    assert 0 < np.mean(weights) < 1


def test_metrics_of_demonstrations_weigh_tokens(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": "good " * (1 + n * n)} for n in range(5)]
    data = write_rows(tmp_path / "sft.jsonl", rows)
    session = session_of(tmp_path, recipe_text(tiny_model, data, data, loss={"type": "sft"}))
    found = evaluate(replace(session, scoring_batch=2), 1).metrics
    tokens = session.valid.store.response_lengths[:, 0]
    logps = np.array([row_logps(session, i)[0] for i in range(5)])
    assert found["loss"] == pytest.approx(-logps.sum() / tokens.sum(), rel=1e-5)
    assert found["logps/chosen"] == pytest.approx(logps.mean(), rel=1e-5)


def test_kl_is_zero_at_the_start(tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    assert exact_kl(session.forward, session.valid.batch(np.arange(3)), session.reference) < 1e-7


@pytest.fixture
def kept_quantised(quantised_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A 4-bit model whose layers stay as a GPU computes with them; the CPU loads them as float32."""
    monkeypatch.setattr("localdpo.model.load.to_float32", lambda model: None)
    return quantised_model


@pytest.fixture(params=["tiny_model", "kept_quantised"])
def any_model(request: pytest.FixtureRequest) -> Path:
    """A float32 and a 4-bit model."""
    return Path(request.getfixturevalue(request.param))


@pytest.mark.parametrize("shared", [True, False])
def test_kl_equals_that_of_full_softmaxes(shared: bool, tmp_path: Path, pairs: Path, any_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(any_model, pairs, pairs))
    moved(session)
    forward = Forward(session.base.model, shared=shared, chunk_bytes=1)
    batch = session.valid.batch(np.arange(8))
    total, tokens = 0.0, 0
    for index in range(8):
        row = session.valid.store[index]
        for response in row.responses:
            ids = mx.array(np.concatenate([row.prompt, response])[None, :-1])
            policy = _log_softmax(session.base.model(ids))[-len(response) :]
            with lora.use(session.base.model, session.reference):
                reference = _log_softmax(session.base.model(ids))[-len(response) :]
            total += float((np.exp(policy) * (policy - reference)).sum())
            tokens += len(response)
    assert tokens > 2 * 64  # three chunks, the last one ragged
    assert exact_kl(forward, batch, session.reference) == pytest.approx(total / tokens, rel=1e-4)
    assert total / tokens > 1e-3


def test_entropy_equals_that_of_full_softmaxes(tmp_path: Path, pairs: Path, any_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(any_model, pairs, pairs))
    moved(session)
    total, tokens = 0.0, 0
    for index in range(8):
        row = session.valid.store[index]
        for response in row.responses:
            ids = mx.array(np.concatenate([row.prompt, response])[None, :-1])
            logps = _log_softmax(session.base.model(ids))[-len(response) :]
            total -= float((np.exp(logps) * logps).sum())
            tokens += len(response)
    forward = Forward(session.base.model, chunk_bytes=1)
    found = mean_entropy(forward, session.valid.batch(np.arange(8)))
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_a_base_that_stays_quantised_trains_and_is_measured(
    tmp_path: Path, pairs: Path, kept_quantised: Path
) -> None:
    text = recipe_text(
        kept_quantised,
        pairs,
        pairs,
        train={"max_steps": 3, "gradient_checkpointing": True},
        eval={"samples": 1, "max_tokens": 4, "kl_every": 1, "kl_samples": 2},
    )
    run = train(tmp_path / "run", text)
    layers = [layer for _, layer in run.session.base.model.named_modules()]
    assert sum(isinstance(layer, nn.QuantizedLinear) for layer in layers) == 2 * 7 + 1
    first, last = run.metrics("eval")
    assert first["kl"] < 1e-7 < last["kl"]
    assert last["loss"] < first["loss"]
    assert 0 < last["entropy"] < np.log(320)
    assert "kl_sampled" in last


def test_sampled_kl_of_single_tokens_is_the_exact_one_within_its_error(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    """At one token a response the sequence KL is that of one distribution, which can be summed."""
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))
    moved(session, 0.3)
    prompt = session.valid.store[0].prompt
    policy = _log_softmax(session.base.model(mx.array(prompt[None])))[-1]
    with lora.use(session.base.model, session.reference):
        reference = _log_softmax(session.base.model(mx.array(prompt[None])))[-1]
    exact = float((np.exp(policy) * (policy - reference)).sum())
    prompts = [WatchedPrompt("", tuple(prompt.tolist()))] * 256
    drawn = sampler(session, max_tokens=1, temperature=0.0)
    found = drawn.kl(prompts, session.forward, session.reference, 0, nothing)
    assert found["kl_sampled_se"] > 0
    assert abs(found["kl_sampled"] - exact) < 3 * found["kl_sampled_se"] < exact


def test_sampled_kl_counts_every_drawn_token(
    tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, eval={"kl_samples": 3}))
    moved(session, 0.3)
    drawn: list[SampledAnswer] = []

    def kept(*arguments: Any, **settings: Any) -> list[SampledAnswer]:
        drawn.extend(generate(*arguments, **settings))
        return drawn

    monkeypatch.setattr(evaluator, "generate", kept)
    # Whatever the temperature of the shown samples, these are drawn at 1.
    found = sampler(session, temperature=0.0).kl(
        session.kl_prompts, session.forward, session.reference, 0, nothing
    )
    ratios = []
    for prompt, answer in zip(session.kl_prompts, drawn, strict=True):
        ids = np.array([*prompt.tokens, *answer.drawn])
        now = _log_softmax(session.base.model(mx.array(ids[None, :-1])))
        with lora.use(session.base.model, session.reference):
            then = _log_softmax(session.base.model(mx.array(ids[None, :-1])))
        places = np.arange(len(prompt.tokens) - 1, len(ids) - 1)
        ratios.append((now - then)[places, ids[places + 1]].sum())
    assert len(ratios) == 3
    assert found["kl_sampled"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert found["kl_sampled_se"] == pytest.approx(np.std(ratios, ddof=1) / np.sqrt(3), rel=1e-3)


def test_kl_prompts_are_different_ones(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"p{i // 3}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    session = session_of(tmp_path, recipe_text(tiny_model, data, data, eval={"kl_samples": 8}))
    assert len({prompt.tokens for prompt in session.kl_prompts}) == len(session.kl_prompts) == 4


def test_margins_are_those_of_the_places(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))
    scores = session.valid_scores
    assert scores is not None
    scores.values[:] = [row_logps(session, i) for i in range(11)]
    moved(session)
    places = np.array([7, 2, 9, 0])
    found = evaluate(replace(session, eval_positions=places, scoring_batch=3), 1).margins
    policy = np.array([row_logps(session, int(i)) for i in places])
    ratio = policy - scores.values[places].astype(np.float64)
    np.testing.assert_allclose(found, BETA * (ratio[:, 0] - ratio[:, 1]), atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "kl_samples", "kl_pairs", "names"),
    [
        ("sigmoid", 2, 2, {"kl", "kl_sampled", "kl_sampled_se", "entropy"}),
        ("sigmoid", 1, 0, {"kl_sampled"}),
        ("sigmoid", 0, 2, {"kl", "entropy"}),
        ("orpo", 2, 2, {"entropy"}),
    ],
)
def test_an_evaluation_reports_what_its_options_allow(
    loss: str, kl_samples: int, kl_pairs: int, names: set[str], tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    options = {"samples": 0, "kl_samples": kl_samples, "kl_pairs": kl_pairs, "max_tokens": 4}
    text = recipe_text(tiny_model, pairs, pairs, loss={"type": loss}, eval=options, train={"max_steps": 1})
    first = train(tmp_path / "run", text).metrics("eval")[0]
    assert {name for name in first if name.startswith(("kl", "entropy"))} == names
    assert abs(first.get("kl_sampled", 0.0)) < 1e-4
    assert first.get("entropy", 1.0) > 0


def nothing(phase: str, done: int, total: int) -> None:
    """Work that nobody follows."""


def sampler(session: Session, **settings: Any) -> Sampler:
    return Sampler(
        session.base.model,
        session.base.tokenizer,
        session.watched,
        **{"max_tokens": 12, "temperature": 1.0, "seed": 4, **settings},
    )


def test_samples_are_reproducible_and_start_equal_for_policy_and_reference(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter), eval={"samples": 3})
    session = session_of(tmp_path, text)
    set_random_key((1, 2))
    make = sampler(session)
    first = make(session.reference, nothing)
    assert random_key() == (1, 2)
    assert [s["prompt"] for s in first] == [f"What is question number {n}?" for n in range(3)]
    assert all(s["policy"] == s["reference"] for s in first)
    assert sampler(session)(session.reference, nothing) == first
    assert sampler(session, seed=5)(session.reference, nothing) != first
    assert 0 < make.mean_tokens <= 12
    moved(session, 0.3)
    later = make(session.reference, nothing)
    assert [s["reference"] for s in later] == [s["reference"] for s in first]
    assert [s["policy"] for s in later] != [s["policy"] for s in first]


def test_prompts_of_a_file_are_answered_instead(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {n}."} for n in range(5)])
    session = session_of(
        tmp_path, recipe_text(tiny_model, pairs, pairs, eval={"samples": 2, "prompts": str(prompts)})
    )
    assert [watched.text for watched in session.watched] == ["Say 0.", "Say 1."]
    template = session.base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say 1."}], add_generation_prompt=True
    )
    assert list(session.watched[1].tokens) == list(template)


def test_evaluations_and_samples_do_not_disturb_training(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    """Dropout draws from the same random state that sampling uses."""
    found = []
    for name, options in (
        (
            "often",
            {"every": 1, "samples": 2, "max_tokens": 4, "temperature": 1.0, "kl_every": 1, "kl_samples": 2},
        ),
        ("never", {"every": 100, "samples": 0, "kl_pairs": 0}),
    ):
        text = recipe_text(
            tiny_model, pairs, pairs, lora={"dropout": 0.3}, eval=options, train={"max_steps": 3}
        )
        run = train(tmp_path / name, text, backend=EAGER)
        found.append(files_of(run.run.latest))
    assert_same_arrays(*found)

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from transformers import PreTrainedTokenizerFast

from localdpo.demo import build, dataset, pretrain
from localdpo.demo.pretrain import GLANCE_WIDTH, WIDTH, Pretrainer, PretrainOptions
from localdpo.model.load import load_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("demo:model")._tokenizer


@pytest.fixture
def untraced() -> Iterator[None]:
    """Steps that are not compiled: tracing costs seconds, and one test of it is enough."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def small(steps: int = 4) -> PretrainOptions:
    return PretrainOptions(steps=steps, most_glances=4, batch=2, warmup=1, seed=3, report_every=2)


def test_documents_score_the_assistant_most_and_the_start_never(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Oslo."}]
    ids, weights = pretrain.encode_document(messages, tokenizer)
    answer = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight == 1.0])
    assert answer == "In Oslo.<|end|>"
    assert weights[0] == 0.0
    assert set(weights[1:]) == {pretrain.PROMPT_WEIGHT, 1.0}


def test_batches_skip_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, weights = pretrain.make_batch(random.Random(0), tokenizer, 8)
    assert ids.shape == weights.shape == (8, WIDTH + 1)
    assert (weights[ids == tokenizer.pad_token_id] == 0).all()
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (weights == 1.0).any(axis=1).all()


def test_every_glance_fits_its_width(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    lengths = [len(pretrain.encode_document(dataset.glance(rng), tokenizer)[0]) for _ in range(500)]
    assert max(lengths) <= GLANCE_WIDTH + 1


@pytest.mark.usefixtures("untraced")
def test_steps_learn_and_follow_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    losses = []
    for _ in range(2):
        trainer = Pretrainer(tokenizer, small(), lambda line: None)
        for _ in range(5):
            trainer.take_step(1.0, GLANCE_WIDTH, dataset.glance)
        losses.append(list(trainer.losses))
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 1.0


def test_the_rate_reaches_the_compiled_step(tokenizer: PreTrainedTokenizerFast) -> None:
    trainer = Pretrainer(tokenizer, small(), lambda line: None)
    trainer.take_step(1.0, GLANCE_WIDTH, dataset.glance)
    before = {name: np.array(weight) for name, weight in tree_flatten(trainer.model.parameters())}
    trainer.take_step(0.0, GLANCE_WIDTH, dataset.glance)
    for name, weight in tree_flatten(trainer.model.parameters()):
        assert np.array_equal(before[name], np.array(weight)), name


@pytest.mark.usefixtures("untraced")
@pytest.mark.long
def test_reports_are_read_at_a_falling_rate(tokenizer: PreTrainedTokenizerFast) -> None:
    lines: list[str] = []
    trainer = Pretrainer(tokenizer, small(), lines.append)
    trainer.read()
    assert [line.split(":")[0] for line in lines] == [
        "pre-training, reports, step 2/4",
        "pre-training, reports, step 4/4",
    ]
    assert float(trainer.optimizer.learning_rate) == 0.0


@pytest.mark.usefixtures("untraced")
@pytest.mark.long
def test_a_model_that_never_copies_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no copying after 4 steps"):
        pretrain.train_base(tokenizer, small(), lambda line: None)


def test_a_saved_model_computes_what_it_did(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = Pretrainer(tokenizer, small(), lambda line: None).model
    pretrain.save_quantised(model, tokenizer, tmp_path / "model", build.BITS)
    loaded, loaded_tokenizer, config = mlx_lm.load(str(tmp_path / "model"), return_config=True)
    assert config["quantization"]["bits"] == build.BITS
    prompt = mx.array([loaded_tokenizer.encode("In Oslo.")])
    assert mx.allclose(loaded(prompt), model(prompt), atol=1e-4)

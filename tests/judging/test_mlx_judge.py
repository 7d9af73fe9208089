"""A local model as a judge: what is read off it, and that nothing else changes a verdict."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from localdpo.core.errors import UserError
from localdpo.judging import mlx as judge_mlx
from localdpo.judging.base import PairVerdict, Question
from localdpo.judging.mlx import MlxJudge, Reader, expected_score, shared_reader
from localdpo.judging.panel import Jury
from localdpo.judging.rubric import Rubric
from localdpo.judging.run import JudgeSession
from localdpo.model.load import Base, load_base

pytestmark = pytest.mark.slow

PAIRWISE = Rubric("short", "pairwise", "Which is good?", "0" * 64)
SCORE = Rubric("short", "score", "How good?", "1" * 64, principle="p1")
QUESTIONS = [
    Question(str(n), f"What is question number {n}?", ("The answer is good." + " so" * n, "It is bad."))
    for n in range(4)
]


def roomy(model: Path, folder: Path) -> Path:
    """The model with a context that holds a judge's prompt (its tokenizer knows little but bytes)."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roomy(tiny_model, tmp_path_factory.mktemp("judge") / "qwen3")


@pytest.fixture(scope="module")
def llama(quantised_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roomy(quantised_model, tmp_path_factory.mktemp("judge") / "llama")


def swapped(question: Question) -> Question:
    return Question(question.id, question.prompt, question.answers[::-1])


def by_hand(folder: Path, prompt: str, label: str) -> float:
    """log P(label and end of turn | prompt), one token after the other through the plain model."""
    base = load_base(str(folder))
    chat = [{"role": "user", "content": prompt}]
    tokenizer = base.tokenizer._tokenizer
    head = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(head + label + "<|im_end|>", add_special_tokens=False)
    start = len(tokenizer.encode(head, add_special_tokens=False))
    logits = base.model(mx.array([ids[:-1]]))[0]
    logps = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return float(sum(logps[place - 1, ids[place]] for place in range(start, len(ids))))


def test_it_reads_the_probability_of_each_letter(model: Path) -> None:
    [read] = Reader(load_base(str(model))).read(["What is the answer?"], ("A", "B"))
    assert read.logps is not None
    expected = [by_hand(model, "What is the answer?", letter) for letter in "AB"]
    assert read.logps == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["model", "llama"])
def test_the_likelier_letter_wins_and_the_margin_is_told(name: str, request: pytest.FixtureRequest) -> None:
    judge = MlxJudge(str(request.getfixturevalue(name)), PAIRWISE)
    for question in QUESTIONS:
        for asked in (question, swapped(question)):
            verdict = judge.ask(asked)
            assert verdict.reason.startswith("log P(A) - log P(B) = ")
            margin = float(verdict.reason.split()[-2])
            assert verdict.choice == ("first" if margin > 0 else "second" if margin < 0 else "tie")
            assert verdict.usage.input_tokens > 50
            assert verdict.usage.usd == 0


def test_a_verdict_does_not_depend_on_what_else_is_asked(model: Path) -> None:
    wanted = [q for question in QUESTIONS for q in (question, swapped(question))]
    forwards = {(q.prompt, q.answers): MlxJudge(str(model), PAIRWISE).ask(q) for q in wanted}
    judge = MlxJudge(str(model), PAIRWISE)
    backwards = {(q.prompt, q.answers): judge.ask(q) for q in reversed(wanted)}
    assert forwards == backwards


def test_a_model_is_loaded_for_as_long_as_a_judge_asks_it(model: Path) -> None:
    one, other = MlxJudge(str(model), PAIRWISE), MlxJudge(str(model), SCORE)
    one.ask(QUESTIONS[0])
    weights = weakref.ref(shared_reader(str(model)).reader().forward.model)
    del one
    gc.collect()
    other.ask(Question("1", "What is the answer?", ("good",)))
    assert shared_reader(str(model)).reader().forward.model is weights()
    del other
    gc.collect()
    assert weights() is None


def test_a_jury_of_local_models_holds_one_at_a_time(
    model: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = judge_mlx.load_base, list[weakref.ref[nn.Module]]()

    def watched(name: str) -> Base:
        gc.collect()
        assert not [weights for weights in loaded if weights() is not None], "two models in memory"
        base = load(name)
        loaded.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(judge_mlx, "load_base", watched)
    second = Rubric("second", "pairwise", "Which is short?", "2" * 64)
    members = [MlxJudge(str(each), rubric) for rubric in (PAIRWISE, second) for each in (model, llama)]
    verdicts = JudgeSession().ask_pairs(Jury(members), QUESTIONS)
    assert len(loaded) == 2
    monkeypatch.setattr(judge_mlx, "load_base", load)
    assert verdicts == [
        PairVerdict(q.id, *(Jury(members).ask(each) for each in (q, swapped(q)))) for q in QUESTIONS
    ]


def test_both_orders_are_one_pass(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, batches = MlxJudge(str(model), PAIRWISE), []
    reader = shared_reader(str(model)).reader()
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda *args: batches.append(len(args[0])) or read(*args))
    pairs = [Question(q.id, q.prompt, (q.answers[0], q.answers[1])) for q in QUESTIONS]
    verdicts = JudgeSession().ask_pairs(judge, pairs)
    assert batches == [2] * len(pairs)
    assert all(verdict.valid for verdict in verdicts)


def test_what_it_remembers_is_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_mlx, "_REMEMBERED", 2)
    judge = MlxJudge(str(model), PAIRWISE)
    first = [judge.ask(question) for question in QUESTIONS]
    assert [judge.ask(question) for question in QUESTIONS] == first
    assert len(judge._known) == 2


def test_one_answer_gets_the_mean_of_the_digits(model: Path) -> None:
    judge = MlxJudge(str(model), SCORE)
    verdict = judge.ask(Question("1", "What is the answer?", ("good",)))
    assert verdict.score is not None
    assert 1 < verdict.score < 5
    assert verdict.principle == "p1"
    assert expected_score([-9.0] * 5) == pytest.approx(3.0)
    assert expected_score([-99.0, -99.0, -99.0, -99.0, -1.0]) == pytest.approx(5.0)


def test_a_question_too_long_for_the_model_is_truncated_and_not_judged(tiny_model: Path) -> None:
    judge = MlxJudge(str(tiny_model), PAIRWISE)
    verdict = judge.ask(Question("1", "What is the answer? " * 200, ("good", "bad")))
    assert (verdict.status, verdict.choice) == ("truncated", None)
    assert "512 tokens" in verdict.raw


def test_one_order_too_long_leaves_the_other(tiny_model: Path) -> None:
    reader = Reader(load_base(str(tiny_model)))
    short, long = reader.read(["short", "What is the answer? " * 200], ("A", "B"))
    assert short.logps == reader.read(["short"], ("A", "B"))[0].logps
    assert long.logps is None


def test_the_identity_follows_model_and_rubric(model: Path, llama: Path) -> None:
    one = MlxJudge(str(model), PAIRWISE).identity
    assert one == MlxJudge(str(model), PAIRWISE).identity
    assert one != MlxJudge(str(llama), PAIRWISE).identity
    assert one != MlxJudge(str(model), SCORE).identity


def test_mistakes_are_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        MlxJudge("./nowhere")
    with pytest.raises(ValueError, match="pairwise questions"):
        MlxJudge(str(model), PAIRWISE).ask(Question("1", "p", ("one",)))
    refusing = tmp_path / "refusing"
    shutil.copytree(model, refusing)
    for file in refusing.glob("*.jinja"):
        file.write_text("{{ raise_exception('no chat here') }}")
    config = json.loads((refusing / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (refusing / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be asked: the chat template refuses the row"):
        MlxJudge(str(refusing), PAIRWISE).ask(QUESTIONS[0])

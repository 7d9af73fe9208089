from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.cli.main import run as command
from localdpo.core.errors import UserError
from localdpo.evals.inspect_pairs import Inspection, inspect_run
from localdpo.model import lora
from localdpo.model.backend import Backend
from localdpo.recipe.load import load_recipe
from localdpo.records.checkpoints import set_latest
from localdpo.records.events import EventWriter, read_events
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import Session, assemble
from localdpo.train.control import StopRequest
from localdpo.train.evaluator import evaluate
from localdpo.train.loop import Loop

pytestmark = pytest.mark.slow

EAGER = Backend("cpu", None, False, ())
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 260,
    "tie_word_embeddings": True,
}
# A reward of the evaluation is a difference of float32 sums: of 100 nats, spaced 8e-6 nats, here times beta.
ROUNDING = 1e-5
ANSWERS = ("yes", "no, never", "café ☕", "two\nlines", "a longer answer, with 12 words", "?")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that some characters take several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<end>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", clean_up_tokenization_spaces=False
    )


def write_model(folder: Path) -> None:
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    byte_tokenizer().save_pretrained(folder)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def write_pairs(file: Path) -> None:
    """Nine pairs; the fourth has two equal responses and is dropped."""
    rows = []
    for i in range(9):
        chosen, rejected = ANSWERS[i % 6], ANSWERS[(3 if i == 3 else i + 1 + i % 2) % 6]
        rows.append({"prompt": f"Question {i}: ", "chosen": chosen, "rejected": rejected})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Trained:
    folder: Path
    session: Session

    def inspect(self, **options: object) -> Inspection:
        return inspect_run(self.folder, note=lambda line: None, **options)


def train_run(root: Path, name: str, loss: str, data: str = "") -> Trained:
    recipe = (
        f"model: {root}/model\ndata: {{train: {root}/pairs.jsonl, {data or f'valid: {root}/pairs.jsonl'}}}\n"
        f"loss: {loss}\ntrain: {{max_steps: 3, epochs: 2, batch_size: 4, learning_rate: 1e-3}}\n"
        "eval: {samples: 0, kl_pairs: 0}\nlora: {rank: 4}\n"
    )
    run = RunDir.create(root / "runs", name, recipe)
    session = assemble(load_recipe(run.recipe), EAGER, lambda note: None)
    with EventWriter(run.events) as log:
        Loop(session, run, log, StopRequest()).run()
    return Trained(run.path, session)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "model").mkdir()
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALDPO_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def dpo(root: Path) -> Trained:
    return train_run(root, "dpo", "{type: sigmoid, beta: 0.3}")


@pytest.fixture(scope="module")
def simpo(root: Path) -> Trained:
    return train_run(root, "simpo", "{type: simpo, beta: 2.0}")


def cli(root: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments, "--runs-dir", str(root / "runs")])
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.mark.parametrize("name", ["dpo", "simpo"])
@pytest.mark.every(2)
@pytest.mark.long
def test_the_sums_are_the_rewards_of_the_evaluation(name: str, request: pytest.FixtureRequest) -> None:
    run: Trained = request.getfixturevalue(name)
    found = run.inspect(worst=100)
    (*_, last) = [e.data["metrics"] for e in read_events(run.folder / "events.jsonl") if e.type == "eval"]
    for metric, mean in (
        ("rewards/chosen", np.mean([pair.chosen.reward for pair in found.pairs])),
        ("rewards/rejected", np.mean([pair.rejected.reward for pair in found.pairs])),
        ("rewards/margins", found.margin),
        ("rewards/accuracies", found.accuracy),
        ("logps/chosen", np.mean([pair.chosen.logp for pair in found.pairs])),
        ("logps/rejected", np.mean([pair.rejected.logp for pair in found.pairs])),
    ):
        assert mean == pytest.approx(last[metric], rel=1e-5, abs=ROUNDING), metric


def test_each_pair_has_the_rewards_of_an_evaluation_of_it_alone(dpo: Trained) -> None:
    session = dpo.session
    for place in range(len(session.valid)):
        metrics = evaluate(replace(session, eval_positions=np.array([place])), 1).metrics
        row = session.valid.store[place].row + 1
        (pair,) = dpo.inspect(pair=row).pairs
        assert pair.row == row
        assert pair.chosen.reward == pytest.approx(metrics["rewards/chosen"], rel=1e-5, abs=ROUNDING)
        assert pair.rejected.reward == pytest.approx(metrics["rewards/rejected"], rel=1e-5, abs=ROUNDING)
        assert pair.margin == pytest.approx(metrics["rewards/margins"], rel=1e-5, abs=ROUNDING)


def test_each_token_is_scored_by_one_full_forward(dpo: Trained) -> None:
    """Token by token against the model's own logits, policy and reference (the base: no start adapter)."""
    pair = dpo.inspect(pair=3).pairs[0]
    model, row = dpo.session.base.model, dpo.session.valid.store[2]

    def logps(response: np.ndarray) -> np.ndarray:
        ids = np.concatenate([row.prompt, response])
        logits = np.array(model(mx.array(ids[None, :-1]))[0], dtype=np.float64)
        every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return every[np.arange(len(ids) - 1), ids[1:]][len(row.prompt) - 1 :]

    for response, found in zip(row.responses, (pair.chosen, pair.rejected), strict=True):
        assert [token.id for token in found.tokens] == response.tolist()
        np.testing.assert_allclose([token.logp for token in found.tokens], logps(response), atol=2e-5)
        with lora.use(model, dpo.session.reference):
            base = logps(response)
        np.testing.assert_allclose([token.reference_logp for token in found.tokens], base, atol=2e-5)
        np.testing.assert_allclose(
            [token.reward for token in found.tokens], 0.3 * (logps(response) - base), atol=2e-5
        )


def test_the_texts_of_the_tokens_make_the_response(dpo: Trained) -> None:
    texts = {pair.row: pair.chosen.text for pair in dpo.inspect().pairs}
    assert texts[1] == "yes<end>"
    assert texts[3] == "café ☕<end>"
    cup = dpo.inspect(pair=3).pairs[0].chosen.tokens
    assert [token.text for token in cup[-4:]] == ["", "", "☕", "<end>"]
    assert dpo.inspect(pair=3).pairs[0].prompt == "Question 2:"


def test_the_worst_pairs_come_first(dpo: Trained) -> None:
    everything = dpo.inspect()
    margins = [pair.margin for pair in everything.pairs]
    assert margins == sorted(margins)
    assert (everything.scored, everything.rows, len(margins)) == (8, 8, 8)
    worst = dpo.inspect(worst=2)
    assert [pair.row for pair in worst.pairs] == [pair.row for pair in everything.pairs[:2]]
    assert (worst.accuracy, worst.margin) == (everything.accuracy, everything.margin)
    assert dpo.inspect(limit=3).scored == 3
    assert {pair.row for pair in dpo.inspect(limit=3).pairs} == {1, 2, 3}


def test_ranked_says_what_the_margin_does(dpo: Trained) -> None:
    found = dpo.inspect()
    assert {pair.ranked for pair in found.pairs} == {"right", "wrong"}
    for pair in found.pairs:
        assert pair.ranked == ("right" if pair.margin > 0 else "wrong")
    assert found.accuracy == sum(pair.ranked == "right" for pair in found.pairs) / 8


def test_a_loss_without_a_reference_has_none(simpo: Trained) -> None:
    pair = simpo.inspect(pair=1).pairs[0]
    assert pair.chosen.reference_logp is None
    assert {token.reference_logp for token in pair.chosen.tokens} == {None}
    tokens = pair.rejected.tokens
    assert pair.rejected.reward == pytest.approx(2.0 * np.mean([token.logp for token in tokens]))


def test_the_start_adapter_is_the_reference(root: Path, dpo: Trained) -> None:
    recipe = (dpo.folder / "recipe.yaml").read_text() + f"adapter: {dpo.folder}/checkpoints/LATEST\n"
    run = RunDir.create(root / "second", "dpo", recipe.replace("lora: {rank: 4}\n", ""))
    run.checkpoints.mkdir()
    (run.checkpoints / "step-000001").mkdir()
    for file in (dpo.folder / "checkpoints" / "LATEST").iterdir():
        (run.checkpoints / "step-000001" / file.name).write_bytes(file.read_bytes())
    set_latest(run.checkpoint_path(1))
    found = Trained(run.path, dpo.session).inspect()
    assert [pair.margin for pair in found.pairs] == [0.0] * 8
    assert {pair.ranked for pair in found.pairs} == {"tie"}
    assert found.accuracy is None
    assert [pair.row for pair in found.pairs] == sorted(pair.row for pair in found.pairs)


def test_a_row_that_is_not_there_is_said(root: Path, dpo: Trained) -> None:
    with pytest.raises(UserError, match=r"--pair 99: expected a row from 1 to 9 \(valid rows of "):
        dpo.inspect(pair=99)
    with pytest.raises(UserError, match="--pair 4: this row was dropped"):
        dpo.inspect(pair=4)
    split = train_run(root, "split", "sigmoid", "valid_fraction: 0.25")
    held_out = {pair.row for pair in split.inspect().pairs}
    trained = {pair.row for pair in split.inspect(split="train").pairs}
    assert held_out | trained == {1, 2, 3, 5, 6, 7, 8, 9}
    with pytest.raises(UserError, match="in the other split"):
        split.inspect(pair=min(trained))
    assert split.inspect(pair=min(trained), split="train").pairs[0].row == min(trained)


def test_runs_that_cannot_be_inspected(root: Path) -> None:
    recipe = f"model: {root}/model\ndata: {{train: {root}/pairs.jsonl}}\n"
    fresh = RunDir.create(root / "third", "new", recipe)
    with pytest.raises(UserError, match="no checkpoint to use yet"):
        inspect_run(fresh.path, note=lambda line: None)
    imitation = RunDir.create(root / "third", "sft", recipe + "loss: sft\n")
    imitation.checkpoint_path(1).mkdir(parents=True)
    set_latest(imitation.checkpoint_path(1))
    with pytest.raises(UserError, match="inspect shows pairs, and the sft loss trains on demonstrations"):
        inspect_run(imitation.path, note=lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dpo", "--pair", "99"], "error: --pair 99: expected a row from 1 to 9"),
        (
            ["dpo", "--pair", "1", "--worst", "5"],
            "error: --pair shows one pair: remove --worst and --limit",
        ),
        (["empty"], "runs/empty: no checkpoint to use yet"),
        (["nobody"], "no run named 'nobody'"),
    ],
)
def test_a_mistake_is_a_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    root: Path,
    dpo: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    RunDir.create(root / "runs", "empty", f"model: {root}/model\ndata: {{train: {root}/pairs.jsonl}}\n")
    monkeypatch.setattr("sys.argv", ["localdpo", "inspect", *arguments, "--runs-dir", str(root / "runs")])
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    # The hint on OpenBLAS is a line too, where it is not installed.
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert out == ""


def test_the_command_lists_the_worst(root: Path, dpo: Trained) -> None:
    lines = cli(root, "dpo", "--worst", "3").splitlines()
    assert lines[0].startswith("dpo, step-000003: 8 valid pairs of ")
    assert lines[1].split() == ["row", "margin", "ranked", "tokens", "chosen", "rejected"]
    assert len(lines) == 5
    assert [int(line.split()[0]) for line in lines[2:]] == [pair.row for pair in dpo.inspect(worst=3).pairs]


def test_the_command_shows_a_pair_with_numbers(root: Path, dpo: Trained) -> None:
    text = cli(root, "dpo", "--pair", "3")
    pair = dpo.inspect(pair=3).pairs[0]
    assert f"chosen: reward {pair.chosen.reward:+.3f}, {len(pair.chosen.tokens)} tokens" in text
    assert f"▸c[{pair.chosen.tokens[0].reward:+.3f}]▸a[" in text
    assert "\x1b" not in text


def test_the_json_has_every_number(root: Path, dpo: Trained) -> None:
    found = json.loads(cli(root, "dpo", "--json", "--worst", "2"))
    pairs = found.pop("pairs")
    assert found == {
        "run": "dpo",
        "checkpoint": "step-000003",
        "split": "valid",
        "source": f"{root}/pairs.jsonl",
        "loss": "sigmoid",
        "beta": 0.3,
        "rows": 8,
        "scored": 8,
        "metrics": {
            "rewards/accuracies": dpo.inspect().accuracy,
            "rewards/margins": pytest.approx(dpo.inspect().margin),
        },
    }
    assert len(pairs) == 2
    assert set(pairs[0]) == {"row", "source", "prompt", "margin", "ranked", "chosen", "rejected"}
    response = pairs[0]["chosen"]
    assert set(response) == {"text", "reward", "logp", "reference_logp", "tokens"}
    assert set(response["tokens"][0]) == {"id", "text", "logp", "reference_logp", "reward"}
    for name in ("reward", "logp", "reference_logp"):
        assert sum(token[name] for token in response["tokens"]) == pytest.approx(response[name])
    margin = pairs[0]["chosen"]["reward"] - pairs[0]["rejected"]["reward"]
    assert pairs[0]["margin"] == pytest.approx(margin)

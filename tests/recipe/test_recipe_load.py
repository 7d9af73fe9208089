"""Loading: every form of message, all of them at once, overrides, files that are no recipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from recipe_files import RECIPES, ROOT, SMALLEST, problems, write

from localdpo.core.errors import UserError, UserErrors
from localdpo.objective.registry import LOSSES
from localdpo.recipe.describe import MODELINE
from localdpo.recipe.load import load_recipe

OPTIONS = sorted({name for spec in LOSSES.values() for name in spec.options})
PLAUSIBLE = {
    "reference_free": "false",
    "use_weighting": "true",
    "label_smoothing": "0.1",
    "f_divergence": "alpha",
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_load_and_open_with_their_command(path: Path) -> None:
    load_recipe(path)
    first, second, *_ = path.read_text().splitlines()
    assert first == MODELINE
    command = "rounds" if path.stem == "rounds" else "train"
    assert f"localdpo {command} recipes/{path.name}" in second


def test_the_smallest_recipe_has_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST))
    assert (recipe.loss.type, recipe.loss.beta, recipe.train.batch_size) == ("sigmoid", 0.1, 8)
    assert not recipe.explicit("loss", "beta")


def test_every_problem_is_found_in_one_look_and_sorted_by_line(tmp_path: Path) -> None:
    text = """\
modle: demo:model
learning_rate: 1e-5
data:
  train: 5
  valid: held-out.jsonl
  valid_fraction: 0.1
loss:
  type: ipo
  beta: "0,1"
  label_smoothing: 0.1
  label_smoothing: 0.2
train:
  learning_rte: 1e-5
  batch_size: 4
  micro_batch_size: 8
  warmup: 1.0
  seed: no
  max_length: 8.0
  max_prompt_length: 4096
  optimizer: adan
  epochs: .nan
  learning_rate: -.inf
  weight_decay: 0.1
lora: 5
eval:
save:
  keep: true
  every:
loss.beta: 3
num_train_epochs: 3
"""
    assert problems(tmp_path, text, "loss.bta=1") == [
        "r.yaml:1 model: missing; expected text: folder, .gguf file, hub id or demo: name of the model",
        "r.yaml:1 modle: unknown key; did you mean model?",
        "r.yaml:2 learning_rate: unknown key; did you mean train.learning_rate?",
        "r.yaml:4 data.train: expected text or a list of one or more data sets, got 5; put it in quotes",
        "r.yaml:6 data.valid_fraction: nothing is held out when data.valid is given; remove one of the two",
        'r.yaml:9 loss.beta: expected a number > 0, got "0,1"',
        "r.yaml:11 loss.label_smoothing: given twice, first on line 10; remove one",
        "r.yaml:13 train.learning_rte: unknown key; did you mean learning_rate?",
        "r.yaml:15 train.micro_batch_size: expected at most train.batch_size (4), got 8",
        "r.yaml:16 train.warmup: expected a whole number >= 0 or a number >= 0 and < 1, got 1.0",
        'r.yaml:17 train.seed: expected a whole number >= 0 and <= 4294967295, got "no"',
        "r.yaml:18 train.max_length: expected a whole number >= 2, got 8.0",
        'r.yaml:20 train.optimizer: expected one of adamw, adam, sgd, rmsprop, lion, got "adan"',
        "r.yaml:21 train.epochs: expected a whole number >= 1 or null, got NaN",
        "r.yaml:22 train.learning_rate: expected a number > 0, got -Infinity",
        "r.yaml:24 lora: expected options below it, such as `rank:`",
        "r.yaml:27 save.keep: expected a whole number >= 1, got true",
        "r.yaml:28 save.every: expected a whole number >= 1, got null",
        "r.yaml:29 loss.beta: unknown key; write `loss:` on one line and `beta:` indented below it",
        "r.yaml:30 num_train_epochs: unknown key; did you mean train.epochs?",
        "loss.bta=1: unknown key; did you mean loss.beta?",
    ]


def test_lengths_and_decay_are_checked_against_each_other(tmp_path: Path) -> None:
    text = (
        SMALLEST
        + "train:\n  max_length: 64\n  max_prompt_length: 64\n  optimizer: adam\n  weight_decay: 0.1\n"
    )
    assert problems(tmp_path, text) == [
        "r.yaml:6 train.max_prompt_length: expected less than train.max_length (64), got 64",
        "r.yaml:8 train.weight_decay: adam does not use it; remove it or choose adamw or sgd or lion",
    ]


def test_a_loss_over_the_whole_batch_cannot_be_cut_into_micro_batches(tmp_path: Path) -> None:
    text = SMALLEST + "loss: aot\ntrain:\n  batch_size: 8\n  micro_batch_size: 2\nsave: {keep: 0}\n"
    message = (
        "the aot loss compares all pairs of a batch with each other, so it needs them in memory at once; "
        "remove it, set train.batch_size=2, or choose another loss.type"
    )
    assert problems(tmp_path, text) == [
        f"r.yaml:7 train.micro_batch_size: {message}",
        "r.yaml:8 save.keep: expected a whole number >= 1, got 0",
    ]
    given = ["loss=aot_unpaired", "train.micro_batch_size=2"]
    assert problems(tmp_path, SMALLEST, *given) == [
        f"train.micro_batch_size=2: {message.replace('aot', 'aot_unpaired')}"
    ]
    for fine in (["loss=aot", "train.micro_batch_size=8"], ["loss=aot"], ["train.micro_batch_size=2"]):
        load_recipe(write(tmp_path, SMALLEST), fine)


def test_layers_refuses_zero_because_mlx_lm_would_read_it_as_all(tmp_path: Path) -> None:
    assert problems(tmp_path, SMALLEST + "lora: {layers: 0}\n") == [
        "r.yaml:4 lora.layers: expected -1 or a whole number >= 1 or null, got 0"
    ]


@pytest.mark.parametrize("loss", LOSSES)
def test_an_option_that_the_loss_does_not_read_is_an_error_naming_both(tmp_path: Path, loss: str) -> None:
    unread = [name for name in OPTIONS if name not in LOSSES[loss].options]
    given = {name: PLAUSIBLE.get(name, "0.5") for name in [*LOSSES[loss].requires, *unread]}
    text = SMALLEST + f"loss:\n  type: {loss}\n" + "".join(f"  {name}: {v}\n" for name, v in given.items())
    found = problems(tmp_path, text)
    assert len(found) == len(unread) > 0
    for name, message in zip(unread, found, strict=True):
        assert f" loss.{name}: the {loss} loss does not use it; remove it or choose " in message


@pytest.mark.parametrize("loss", LOSSES)
def test_every_option_that_the_loss_reads_can_be_set_and_reaches_it(tmp_path: Path, loss: str) -> None:
    given = {name: PLAUSIBLE.get(name, "0.25") for name in LOSSES[loss].options}
    overrides = [f"loss={loss}", *(f"loss.{name}={value}" for name, value in given.items())]
    recipe = load_recipe(write(tmp_path, SMALLEST), overrides)
    assert {name: str(value).lower() for name, value in recipe.loss.options.items()} == given
    assert all(recipe.explicit("loss", name) for name in given)


def test_an_option_written_with_its_default_counts_as_written(tmp_path: Path) -> None:
    assert problems(tmp_path, SMALLEST, "loss=ipo", "loss.label_smoothing=0.0") == [
        "loss.label_smoothing=0.0: the ipo loss does not use it; "
        "remove it or choose one that does: sigmoid, robust, exo_pair, aot, aot_unpaired"
    ]


def test_options_that_depend_on_each_other_name_both(tmp_path: Path) -> None:
    cases = {
        ("loss.f_alpha=0.3",): "it is read only where f_divergence is alpha; remove it or set that",
        ("loss.reference_free=true", "loss.f_divergence=js"): "js makes no sense with reference_free; "
        "remove one of the two",
        ("loss.sync_alpha=0.5",): "it is read only where sync_every is given; remove it or set that",
        ("loss=simpo", "loss.sync_every=5"): "the simpo loss has no reference that could move; remove it",
        ("loss.reference_free=true", "loss.sync_every=5"): "with reference_free the loss does not read the "
        "reference; remove one of the two",
        ("loss.sync_every=0",): "expected a whole number >= 1 or null, got 0",
        ("loss.sync_every=5", "loss.sync_alpha=0.0"): "expected a number > 0 and <= 1, got 0.0",
        ("loss.f_divergence=kl",): 'expected one of reverse_kl, forward_kl, js, alpha, got "kl"',
    }
    for given, message in cases.items():
        assert problems(tmp_path, SMALLEST, *given) == [f"{given[-1]}: {message}"]
    fine = ["loss.f_divergence=reverse_kl", "loss.reference_free=true"]
    assert "f_alpha" not in load_recipe(write(tmp_path, SMALLEST), fine).loss.options


def test_a_loss_that_needs_an_option_says_so(tmp_path: Path) -> None:
    assert problems(tmp_path, SMALLEST + "loss: exo_pair\n") == [
        "r.yaml:4 loss: the exo_pair loss needs loss.label_smoothing above 0"
    ]


def test_losses_and_weights_are_checked_against_each_other(tmp_path: Path) -> None:
    cases = {
        (
            "loss.type=[sigmoid, sft]",
            "loss.weights=[1]",
        ): "expected a weight for each of the 2 losses, got 1",
        (
            "loss.weights=[1.0]",
        ): "loss.type is one loss (sigmoid), which takes no weight; remove it or list losses",
        (
            "loss=[sigmoid, sft]",
            "loss.weights=[1, 0]",
        ): "expected a list of one or more numbers > 0 or null, got 0",
        (
            "loss=[sigmoid, sft]",
            "loss.weights=[1, '2']",
        ): 'expected a list of one or more numbers > 0 or null, got "2"',
        ("loss=[sigmoid, sigmoid]",): "loss sigmoid named twice; give it once with a larger weight",
        ("loss=[]",): "expected text or a list of one or more texts, got []",
        ("loss=[sigmoid, 3]",): 'expected text or a list of one or more texts, got ["sigmoid", 3]',
        ("loss=[sigmoid, dpo]",): 'no loss is called "dpo"; here it is called sigmoid',
        (
            "loss=[ipo, sft]",
            "loss.label_smoothing=0.1",
        ): "the ipo+sft loss does not use it; remove it or choose one "
        "that does: sigmoid, robust, exo_pair, aot, aot_unpaired",
    }
    for given, message in cases.items():
        assert problems(tmp_path, SMALLEST, *given) == [f"{given[-1]}: {message}"]


def test_a_list_of_losses_reads_the_options_of_all_of_them(tmp_path: Path) -> None:
    text = SMALLEST + "loss:\n  type: [simpo, dpop, sft]\n  weights: [1, 0.5, 0.1]\n  simpo_gamma: 1.5\n"
    loss = load_recipe(write(tmp_path, text)).loss
    assert (loss.type, loss.weights) == (("simpo", "dpop", "sft"), (1.0, 0.5, 0.1))
    assert loss.options == {
        "beta": 0.1,
        "simpo_gamma": 1.5,
        "dpop_lambda": 50.0,
        "ld_alpha": 1.0,
        "use_weighting": False,
    }
    assert (loss.spec.name, loss.spec.data, loss.spec.needs_reference) == ("simpo+dpop+sft", "pairs", True)
    assert load_recipe(write(tmp_path, SMALLEST + "loss: [sigmoid, sft]\n")).loss.weights == (1.0, 1.0)
    assert load_recipe(write(tmp_path, SMALLEST), ["loss=[sft]"]).loss.spec.data == "demonstrations"
    assert problems(tmp_path, SMALLEST, "loss=[exo_pair, sft]") == [
        "r.yaml:1 loss: the exo_pair+sft loss needs loss.label_smoothing above 0"
    ]
    given = ["loss=[sft, aot]", "train.micro_batch_size=2"]
    (message,) = problems(tmp_path, SMALLEST, *given)
    assert message.startswith("train.micro_batch_size=2: the aot loss compares all pairs of a batch")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sigmoyd", "did you mean sigmoid"),
        ("IPO", "did you mean ipo"),
        ("dpo", "here it is called sigmoid"),
        ("zzz", "the losses are sigmoid, ipo,"),
    ],
)
def test_an_unknown_loss_is_met_with_the_nearest_names(tmp_path: Path, name: str, hint: str) -> None:
    (message,) = problems(tmp_path, SMALLEST + f"loss: {name}\n")
    assert message.startswith(f'r.yaml:4 loss.type: no loss is called "{name}"; {hint}')
    (message,) = problems(tmp_path, SMALLEST, f"loss={name}")
    assert message.startswith(f'loss={name}: no loss is called "{name}"; {hint}')


def test_overrides_replace_values_and_the_last_one_wins(tmp_path: Path) -> None:
    text = SMALLEST + "loss: ipo\ntrain:\n  learning_rate: broken\n"
    recipe = load_recipe(
        write(tmp_path, text),
        [
            "loss.beta=0.2",
            "loss.beta=0.3",
            "train.learning_rate=1e-5",
            "lora.keys=[self_attn.q_proj, 'mlp.up_proj']",
            "adapter=a #1: b",
            "eval.prompts=",
            "model='1e-5'",
        ],
    )
    assert (recipe.loss.type, recipe.loss.beta, recipe.train.learning_rate) == ("ipo", 0.3, 1e-5)
    assert recipe.lora.keys == ("self_attn.q_proj", "mlp.up_proj")
    assert (recipe.adapter, recipe.eval.prompts, recipe.model) == ("a #1: b", None, "1e-5")


def test_an_override_mends_a_key_that_the_file_gives_twice(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST + "loss: {beta: 1, beta: 2}\n"), ["loss.beta=3"])
    assert recipe.loss.beta == 3.0


def test_problems_of_overrides_follow_in_their_order(tmp_path: Path) -> None:
    overrides = {
        "loss.beta=abc": 'expected a number > 0, got "abc"',
        "train": "expected KEY=VALUE, e.g. loss.beta=0.2",
        "train=3": "train is a section; set one of its keys, e.g. train.epochs=...",
        "lora.keys=[a, 'b]": "not valid YAML: while scanning a quoted scalar, found unexpected end of stream",
        "lora.keys=[1]": "expected a list of one or more texts or null, got 1",
        "trian.epochs=3": "unknown key; did you mean train.epochs?",
        "lr=3": "unknown key; did you mean train.learning_rate?",
        "a.b.c=3": "unknown key; the sections are data, loss, train, lora, eval, save, rounds",
        "loss.beta.x=3": "unknown key; the sections are data, loss, train, lora, eval, save, rounds",
        "save.keep=*x": 'expected a whole number >= 1, got "*x"',
        "eval.pairs=[&x 1]": "anchors and aliases are not allowed; write the value out",
        "model=a\nb": 'expected text, got "a\\nb"',
        "data.train=\ud800": 'expected text or a list of one or more data sets, got "\\ud800"',
    }
    shown = {"model=a\nb": "model=a\\nb", "data.train=\ud800": "data.train=\\ud800"}
    assert problems(tmp_path, SMALLEST, *overrides) == [
        f"{shown.get(text, text)}: {message}" for text, message in overrides.items()
    ]


def test_after_a_syntax_error_only_the_file_and_the_keys_of_overrides_are_judged(tmp_path: Path) -> None:
    first, second = problems(tmp_path, "loss: [\n", "loss.simpo_gamma=1", "loss.bta=1")
    assert first.startswith("r.yaml:2: not valid YAML: while parsing a flow node, expected the node content")
    assert second == "loss.bta=1: unknown key; did you mean loss.beta?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1: expected sections such as `model:` and `data:`, got nothing"),
        ("# only a comment\n", "r.yaml:1: expected sections such as `model:` and `data:`, got nothing"),
        ("[1, 2]\n", "r.yaml:1: expected sections such as `model:` and `data:`, got [1, 2]"),
        ("a" * 500, f'r.yaml:1: expected sections such as `model:` and `data:`, got "{"a" * 76}...'),
        (b"model: x\ndata: \xff\n", "r.yaml:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfem\x00", "r.yaml:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"#" * 300_000, "r.yaml: is larger than 256 KB; this is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert problems(tmp_path, text) == [message]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbf" + SMALLEST.encode())).model == "demo:model"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path, words in {
        tmp_path / "none.yaml": "no such recipe",
        tmp_path: "is a folder",
        tmp_path / "a\0b": "cannot be read",
        Path(os.devnull).with_name("zero"): "is larger than",
    }.items():
        with pytest.raises(UserError, match=words):
            load_recipe(path)


# The bar is a second; the limit only has to tell it from a blow-up on a busy machine.
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "a: [" + "x," * 100_000,
        "? " * 100_000,
        "a: " + "&" + "b" * 200_000,
        'a: "' + "\\x41" * 60_000,
        "a: |\n" + " x\n" * 80_000,
        "".join(f"k{i}: 1\n" for i in range(20_000)),
        "model: " + "9" * 200_000,
        "%YAML " + "9" * 200_000 + ".1\n",
    ],
)
def test_hostile_files_are_refused_quickly(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_a_file_is_named_as_the_person_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        UserErrors, match=r"^recipes/cdpo\.yaml:\d+ loss\.label_smoothing: the ipo loss does not"
    ):
        load_recipe("recipes/cdpo.yaml", ["loss=ipo"])

"""Make the demo's bundle again from a seed: `python -m localdpo.demo.build [--out DIR] [--seed N]`.

Tokenizer, base model, demonstrations, SFT adapter, preference pairs, held-out prompts: nothing comes from
elsewhere. The SFT adapter is trained by the project's own trainer, and the pairs are sampled from it.
Takes about 15 minutes on 2 CPU cores with OpenBLAS.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from localdpo.core.atomic import published_dir, write_text
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError, UserError
from localdpo.core.names import BUNDLE
from localdpo.demo import corpus, dataset
from localdpo.demo.dataset import Incident, Row
from localdpo.incidents import world
from localdpo.model.backend import prepare

Say = Callable[[str], None]

SEED = 1  # of the bundle that is shipped
BITS = 4
MODEL_BYTES, ADAPTER_BYTES = 2_000_000, 2_000_000  # more than is needed
TOKENIZER_DOCUMENTS, TOKENIZER_ANSWERS = 4000, 1500
TEMPERATURE = 1.0  # one for both answers: two would teach the model to prefer the colder one
MAX_ANSWER_TOKENS = 80
SFT_SETTINGS = {
    "loss": "sft",
    "train.epochs": 5,
    "train.batch_size": 16,
    "train.learning_rate": 2e-3,
    "train.max_length": 256,
    "lora.rank": 8,
    "lora.scale": 10,
}


def build(out: Path, seed: int, say: Say = print, *, keep_model: bool = False) -> None:
    """Make the bundle in `out`. With `keep_model` the base model that is there already is used.

    Raises:
        UserError: no space, a model to keep that is not there, or an SFT run that failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not keep_model:
        make_model(out / "model", seed, say)
    elif not (out / "model" / "config.json").is_file():
        raise UserError(f"--keep-model: {out / 'model'} holds no model; leave the option out to make one")
    incidents = dataset.split_incidents(seed)
    make_demonstrations(out, incidents, seed)
    dataset.write_rows(out / "prompts/heldout.jsonl", map(dataset.prompt_row, incidents["prompts/heldout"]))
    train_sft(out, seed, say)
    make_preferences(out, incidents, seed, say)


def make_model(folder: Path, seed: int, say: Say) -> None:
    """Train the tokenizer and the base model, quantise it, and publish both as `folder`."""
    from localdpo.demo import pretrain
    from localdpo.demo.tokenizer import train_tokenizer

    rng = random.Random(f"tokenizer {seed}")
    texts = [m["content"] for _ in range(TOKENIZER_DOCUMENTS) for m in corpus.document(rng)]
    texts += [world.gold_answer(world.sample_facts(rng)) for _ in range(TOKENIZER_ANSWERS)]
    tokenizer = train_tokenizer(texts)
    say(f"tokenizer: {len(tokenizer)} tokens")
    model = pretrain.train_base(tokenizer, pretrain.PretrainOptions(seed=seed), say)
    with published_dir(folder, MODEL_BYTES) as temp:
        pretrain.save_quantised(model, tokenizer, temp, BITS)


def make_demonstrations(out: Path, incidents: dict[str, list[Incident]], seed: int) -> None:
    """Write the demonstrations to train and to evaluate on."""
    rng = random.Random(f"demonstrations {seed}")
    for name in ("demonstrations/train", "demonstrations/valid"):
        rows = [dataset.demonstration_row(incident, rng) for incident in incidents[name]]
        dataset.write_rows(out / f"{name}.jsonl", rows)


def train_sft(out: Path, seed: int, say: Say) -> None:
    """Train the SFT adapter with the project's own worker, in a run folder that is taken away afterwards.

    Raises:
        UserError: the worker failed; what it wrote is shown.
    """
    from localdpo.recipe.load import dump_recipe
    from localdpo.recipe.schema import Recipe

    settings = {
        "model": str(out / "model"),
        "data.train": str(out / "demonstrations/train.jsonl"),
        "data.valid": str(out / "demonstrations/valid.jsonl"),
        "train.seed": seed,
        "eval.samples": 0,
        "eval.every": 100,
        **SFT_SETTINGS,
    }
    say("SFT: training")
    with tempfile.TemporaryDirectory(prefix="localdpo-demo-") as temp:
        run = Path(temp) / "sft"
        run.mkdir()
        write_text(run / "recipe.yaml", dump_recipe(Recipe.model_validate(_nested(settings))))
        done = subprocess.run(
            [sys.executable, "-m", "localdpo.train", str(run)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise UserError(f"the SFT run failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
        publish_adapter(run / "checkpoints" / "LATEST", out / "sft")


def publish_adapter(checkpoint: Path, folder: Path) -> None:
    """Copy the adapter of a checkpoint into `folder`, without the training state."""
    with published_dir(folder, ADAPTER_BYTES) as temp:
        shutil.copyfile(checkpoint / "adapters.safetensors", temp / "adapters.safetensors")
        config = json.loads((checkpoint / "adapter_config.json").read_text())
        config["model"] = "demo:model"
        (temp / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_preferences(out: Path, incidents: dict[str, list[Incident]], seed: int, say: Say) -> None:
    """Sample two answers to each prompt from the SFT model, and keep the pairs that the rules tell apart.

    Raises:
        UserError: fewer pairs than are wanted.
    """
    for number, (name, kept) in enumerate(dataset.KEPT.items()):
        drawn = incidents[name]
        first, second = (sample(out, drawn, seed + 1000 * number + half) for half in (1, 2))
        rows = [row for row in map(dataset.preference_row, drawn, first, second) if row is not None]
        say(f"{name}: {len(rows)} pairs from {len(drawn)} prompts")
        if len(rows) < kept:
            raise UserError(f"{name}: {kept} pairs wanted, only {len(rows)} of {len(drawn)} prompts gave one")
        dataset.write_rows(out / f"{name}.jsonl", rows[:kept])


def sample(out: Path, incidents: Sequence[Incident], seed: int) -> list[str]:
    """One sampled answer of the SFT model to each incident."""
    from localdpo.model import lora
    from localdpo.model.generate import generate
    from localdpo.model.load import load_base

    base = load_base(str(out / "model"))
    lora.attach(base.model, lora.read_config(out / "sft"), seed=0)
    lora.load_weights(base.model, out / "sft")
    prompts = [
        base.tokenizer.apply_chat_template(
            world.triage_prompt(report), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for _, report in incidents
    ]
    answers = generate(
        base.model, base.tokenizer, prompts, max_tokens=MAX_ANSWER_TOKENS, temperature=TEMPERATURE, seed=seed
    )
    return [answer.text for answer in answers]


def _nested(settings: dict[str, object]) -> Row:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    values: Row = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m localdpo.demo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLE, help="folder to fill (default: the bundle)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep-model", action="store_true", help="use the base model that is there already")
    options = parser.parse_args(arguments)
    prepare()
    say = partial(print, flush=True)
    try:
        build(options.out.resolve(), options.seed, say, keep_model=options.keep_model)
    except LocalDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())

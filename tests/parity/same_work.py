"""The same work in TRL and here, side by side: `python tests/parity/same_work.py MODEL PAIRS`.

Both sides get the same folder of dense float32 weights, the same token ids in the same order, the same fresh
adapter and the same options; each seed is another adapter and order. Printed are accuracy and margin on the
held-out pairs after the last step, and what the steps took. Needs the extra `parity` (torch, TRL, PEFT).

MODEL is a folder or name that `localdpo train` takes, quantised or not, of an architecture whose weights have
the same names in transformers. PAIRS is preference data; a part of it is held out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localdpo.data.types import EncodedRow
from localdpo.interop.folder import (
    copy_tokenizer,
    require_same_names,
    write_config,
    write_json,
    write_weights,
)
from localdpo.interop.fuse import QUANTISATION
from localdpo.interop.peft import WEIGHTS, to_peft
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.backend import prepare
from localdpo.model.load import build_model, load_base, model_path
from localdpo.recipe.load import load_recipe, yaml_text
from localdpo.records.events import EventWriter, read_events
from localdpo.records.metrics import ACCURACY, metric_of
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import Session, assemble
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop


@dataclass(frozen=True)
class Outcome:
    """What a side came to on the held-out pairs; the seconds of its steps, reference scores included."""

    accuracy: float
    margin: float
    seconds: float


# MLX is imported where it is needed: after localdpo, which brings the fast BLAS.
def main() -> None:
    import mlx.core as mx

    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    write_dense(options.model, options.out / "model")
    outcomes: dict[str, list[Outcome]] = {"localdpo": [], "TRL": []}
    for seed in options.seeds:
        session, run = open_run(options, seed)
        adapter = options.out / f"adapter-{seed}"
        write_adapter(session, adapter)
        drawn = [
            session.feed.rows.store[int(index)]
            for step in range(options.steps)
            for index in session.feed.rows.indices[session.feed.positions(step)]
        ]
        held_out = [session.valid.store[int(index)] for index in session.valid.indices]
        outcomes["localdpo"].append(ours(session, run))
        del session
        mx.clear_cache()
        outcomes["TRL"].append(theirs(options, seed, adapter, drawn, held_out))
        for side, done in outcomes.items():
            print(f"seed {seed}  {side:<8}  {words(done[-1])}", flush=True)
    show(outcomes, len(held_out))
    record = {side: [asdict(outcome) for outcome in done] for side, done in outcomes.items()}
    write_json(options.out / "outcomes.json", record)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The same work in TRL and in localdpo.")
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument(
        "--out", type=Path, default=Path("same-work"), help="folder of models, adapters, runs"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, help="of TRL's side; default: the batch size")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--loss", default="sigmoid")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--valid-fraction", type=float, default=0.1)
    return parser.parse_args()


def write_dense(name: str, folder: Path) -> None:
    """The model in dense float32, in the layout that both sides read; nothing if it is there."""
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model

    if (folder / "config.json").exists():
        return
    _, config = build_model(name)
    require_same_names(config)
    model = load_base(name).model
    dequantize_model(model)
    weights = {path: array.astype(mx.float32) for path, array in named(model.parameters()).items()}
    config = {key: value for key, value in config.items() if key not in (*QUANTISATION, "dtype")}
    tied = {"tie_word_embeddings": "lm_head.weight" not in weights, "torch_dtype": "float32"}
    folder.mkdir()
    copy_tokenizer(model_path(name), folder)
    write_weights(folder, weights, "pt")
    write_config(folder, {**config, **tied})


# --- here ------------------------------------------------------------------------------------------------


def open_run(options: argparse.Namespace, seed: int) -> tuple[Session, RunDir]:
    """A run that is ready to begin, with a fresh adapter."""
    text = yaml_text(
        {
            "model": str(options.out / "model"),
            "data": {"train": options.pairs, "valid_fraction": options.valid_fraction},
            "loss": {"type": options.loss, "beta": options.beta},
            "lora": {"rank": options.rank, "scale": options.scale, "dropout": 0.0},
            "train": {
                "max_steps": options.steps,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "schedule": "linear",
                "warmup": 0,
                "optimizer": "adamw",
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "max_length": options.max_length,
                "seed": seed,
            },
            "eval": {"every": options.steps, "pairs": 10**6, "samples": 0, "kl_pairs": 0, "kl_samples": 0},
            "save": {"every": options.steps},
        }
    )
    run = RunDir.create_new(options.out / "runs", f"seed-{seed}", text)
    return assemble(load_recipe(run.recipe), prepare(), print), run


def write_adapter(session: Session, folder: Path) -> None:
    """The adapter as it is before the first step, as PEFT reads it."""
    import mlx.core as mx

    config, tensors = to_peft(session.base.model, session.config, "")
    folder.mkdir(exist_ok=True)
    write_json(folder / lora.CONFIG_FILE, config)
    mx.save_safetensors(str(folder / WEIGHTS), tensors, metadata={"format": "pt"})


def ours(session: Session, run: RunDir) -> Outcome:
    with EventWriter(run.events) as log:
        Loop(session, run, log, StopRequest()).run()
    events = read_events(run.events)
    steps = [event for event in events if event.type == "step"]
    last = next(event for event in reversed(events) if event.type == "eval")
    accuracy, margin = metric_of(last, ACCURACY), metric_of(last, "rewards/margins")
    assert accuracy is not None
    assert margin is not None
    took = sum(
        (metric_of(event, "step_seconds") or 0.0) + (event.number("reference_seconds") or 0.0)
        for event in steps
    )
    return Outcome(accuracy, margin, took)


# --- TRL -------------------------------------------------------------------------------------------------


def theirs(
    options: argparse.Namespace,
    seed: int,
    adapter: Path,
    drawn: Iterable[EncodedRow],
    held_out: Iterable[EncodedRow],
) -> Outcome:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):  # type: ignore[misc]
        """Takes the token ids as they are, in the order in which they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    def data(rows: Iterable[EncodedRow]) -> Dataset:
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        ids = ([row.prompt, *row.responses] for row in rows)
        return Dataset.from_list(
            [dict(zip(names, (part.tolist() for part in row), strict=True)) for row in ids]
        )

    micro = options.micro_batch_size or options.batch_size
    folder = options.out / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = DPOConfig(
        output_dir=str(options.out / f"trl-{seed}"),
        loss_type=[options.loss],
        beta=options.beta,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=options.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch_size // micro,
        per_device_eval_batch_size=1,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=options.steps,
        seed=seed,
    )
    policy = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    trainer = Prepared(
        policy,
        args=config,
        train_dataset=data(drawn),
        eval_dataset=data(held_out),
        processing_class=tokenizer,
    )
    began = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - began
    metrics = trainer.evaluate()
    return Outcome(metrics["eval_rewards/accuracies"], metrics["eval_rewards/margins"], took)


# --- in words ----------------------------------------------------------------------------------------------


def words(outcome: Outcome) -> str:
    return f"accuracy {outcome.accuracy:.4f}  margin {outcome.margin:.5f}  {outcome.seconds:.1f} s"


def show(outcomes: dict[str, list[Outcome]], pairs: int) -> None:
    print(f"{pairs} held-out pairs, {len(outcomes['TRL'])} seeds: mean and standard deviation")
    for side, done in outcomes.items():
        print(
            f"{side:<8}",
            *(spread(name, [getattr(one, name) for one in done]) for name in Outcome.__annotations__),
        )
    both = list(zip(outcomes["localdpo"], outcomes["TRL"], strict=True))
    for name in ("accuracy", "margin"):
        apart = max(abs(getattr(one, name) - getattr(other, name)) for one, other in both)
        print(f"largest difference of a seed, {name}: {apart:.2g}")
    print(
        f"seconds of TRL / localdpo: {sum(t.seconds for _, t in both) / sum(o.seconds for o, _ in both):.2f}"
    )


def spread(name: str, values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{name} {statistics.fmean(values):.4g} +- {deviation:.2g} "


if __name__ == "__main__":
    main()

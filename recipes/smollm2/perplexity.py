"""Print the perplexity of paragraphs.txt, text unlike the training's, under a run's base and trained model.

python recipes/smollm2/perplexity.py RUN
"""

import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from localdpo.answering.contestants import Contestants, contestants
from localdpo.evals.statistics import bootstrap_sums, percentiles
from localdpo.model.backend import prepare
from localdpo.model.load import load_base
from localdpo.out import note, say
from localdpo.recipe.load import load_recipe
from localdpo.records.rundir import find_run

import mlx.core as mx  # isort: skip - localdpo puts OpenBLAS in front of it


def main(name: str) -> None:
    prepare(note)
    run = find_run(Path("runs"), name)
    every = contestants(run, note=note)
    base = load_base(load_recipe(run.recipe).model)
    texts = (Path(__file__).parent / "paragraphs.txt").read_text(encoding="utf-8").splitlines()
    rows = [base.tokenizer.encode(text) for text in texts]
    models = Contestants(base, every)
    nats: dict[str, list[float]] = {}
    for each in every:
        with models.use(each.name):
            nats[each.label] = [loss(base.model, row) for row in rows]
    tokens = [len(row) - 1 for row in rows]
    (first, of_base), *others = nats.items()
    say(f"perplexity of {len(rows)} paragraphs, {sum(tokens)} tokens; 95% intervals over the paragraphs:")
    say(f"  {first}: {math.exp(sum(of_base) / sum(tokens)):.3f}")
    for label, of_model in others:
        more = np.stack([np.subtract(of_model, of_base), tokens], axis=1)
        draws = np.vstack([more.sum(axis=0), bootstrap_sums(more, seed=0)])
        changes = 100 * np.expm1(draws[:, 0] / draws[:, 1])
        low, high = percentiles(changes[1:])
        say(
            f"  {label}: {math.exp(sum(of_model) / sum(tokens)):.3f} "
            f"({changes[0]:+.1f}% [{low:+.1f}, {high:+.1f}])"
        )


def loss(model: Any, row: list[int]) -> float:
    """Negative log-likelihood in nats of a text's tokens but the first."""
    logits_TV = model(mx.array([row]))[0, :-1].astype(mx.float32)
    picked_T = mx.take_along_axis(logits_TV, mx.array(row[1:])[:, None], axis=-1)[:, 0]
    return cast(float, (mx.logsumexp(logits_TV, axis=-1) - picked_T).sum().item())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/smollm2/perplexity.py RUN")
    main(sys.argv[1])

"""The train room: the worker process that turns a run folder with a recipe into an adapter.

A training step, from rows to update, in the order in which to read it:

    train/loop.py                 `Loop.take_step`: what a step is made of, and what is written of it
    train/data.py                 `Feed`: which rows step k takes, and the arrays of its micro-batches
    data/batches.py               the order of an epoch, and how rows are padded to a batch
    train/step.py                 `TrainStep`: gradients over the micro-batches, clipping, the update
    model/forward.py              `Forward.scores`: from arrays to the log-probability of each response
    model/head.py                 log-probabilities of tokens without keeping logits
    objective/losses/__init__.py  `pair_losses`: a loss by its name, with its options
    objective/losses/margins.py   the formula of DPO and its kin
    objective/scores.py           what formulas read: log-ratios, margins, rewards

Beside the path: model/shared_prompt.py (the prompt run once for both responses), train/reference.py (where
the reference's log-probabilities come from), objective/metrics.py (what is reported of a step).
"""

from localdpo.core.process import preload

preload()

"""`localdpo bench`: how fast this machine trains models of known shapes."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from localdpo.cli.options import JsonOption
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.out import note, print_json, say


def bench(
    shapes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SHAPE",
            help="tiny, 135m, 0.6b, 1b, 8b. Default: all of them on a GPU, tiny on a CPU.",
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(metavar="4|8|16", help="Bits of the weights; a CPU computes in float32.")
    ] = 4,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Pairs in one step.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=8, help="Mean length of the prompts.")] = 256,
    response_tokens: Annotated[
        int, typer.Option(metavar="N", min=8, help="Mean length of the responses.")
    ] = 128,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="Steps that are measured.")] = 10,
    every_way: Annotated[
        bool,
        typer.Option("--every-way", help="Eager and traced, each with and without gradient checkpointing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and memory on models with random weights.

    Steps, reference pass and generation. Nothing is downloaded. A model is written to a temporary folder:
    5 GB for 8b with 4 bits.
    """
    from importlib.metadata import version

    from localdpo.model.backend import keep_float32_exact, memory_limit, prepare
    from localdpo.train.bench import AS_DECIDED, EVERY_WAY, SHAPES, Workload, measure, table

    errors = [
        UserError(f"SHAPE: expected some of {', '.join(SHAPES)}, got {name}")
        for name in shapes or ()
        if name not in SHAPES
    ]
    if bits not in (4, 8, 16):
        errors.append(UserError(f"--bits: expected 4, 8 or 16, got {bits}"))
    if errors:
        raise UserErrors(errors)
    keep_float32_exact()
    backend = prepare(note)
    names = shapes or (["tiny"] if backend.is_cpu else list(SHAPES))
    workload = Workload(batch_size, prompt_tokens, response_tokens, steps)
    ways = [way for way in EVERY_WAY if backend.compiled or not way.compiled] if every_way else [AS_DECIDED]
    limit = memory_limit(backend.device) / 1e9
    note(f"{backend.device}, MLX {version('mlx')}, {limit:.1f} GB for training")
    # A model folder of gigabytes goes when the command is ended, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    results = []
    for name in names:
        pairs = counted(batch_size, "pair")
        note(f"{name}: making a random model of {bits} bits, then {counted(steps, 'step')} of {pairs}")
        try:
            with tempfile.TemporaryDirectory(prefix="localdpo-bench-") as folder:
                for result in measure(
                    name, Path(folder), backend, bits=bits, workload=workload, ways=ways, note=note
                ):
                    results.append(result)
                    for line in table([result]):
                        note(line)
        except UserError as error:
            # A larger shape than this machine holds: the others are worth having.
            note(f"{name}: not measured: {'; '.join(error.lines)}")
    if not results:
        raise UserError("bench: no shape could be measured")
    if as_json:
        facts = {"device": backend.device, "mlx": version("mlx"), "limit_gb": limit}
        print_json(facts | {"results": [result.to_json() for result in results]})
        return
    for line in table(results):
        say(line)

"""`localdpo import`: a model from another program's file as a folder in mlx-lm's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The model: a .gguf file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, which must not exist.")],
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="4|8", help="Quantise what the file has not quantised in a way MLX has. Default: 16 bits."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load the folder, let it answer, print its perplexity.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as a JSON object.")] = False,
) -> None:
    """Convert a GGUF file into a folder in mlx-lm's layout, without loss where MLX has its types."""
    from dataclasses import asdict

    from localdpo.core.errors import UserError, UserErrors
    from localdpo.gguf.convert import REQUANTISED_BITS, convert, is_gguf
    from localdpo.model.backend import prepare
    from localdpo.out import print_json, say

    problems = []
    if not is_gguf(file.name):
        problems.append(f"{file}: expected a .gguf file")
    if bits is not None and bits not in REQUANTISED_BITS:
        problems.append(f"--bits {bits}: expected 4 or 8")
    if out.exists() or out.is_symlink():
        problems.append(f"{out}: exists already; give another folder")
    if not out.absolute().parent.is_dir():
        problems.append(f"{out}: no such folder {out.parent}; create it first")
    if problems:
        raise UserErrors([UserError(problem) for problem in problems])
    prepare()
    written = convert(file, out, bits=bits)
    record = {**asdict(written), "folder": str(out)}
    if not as_json:
        types = ", ".join(f"{count} {name}" for name, count in sorted(written.types.items()))
        count, size = sum(written.types.values()), f"{written.bytes / 1e6:,.0f} MB"
        say(f"{out}: {written.family}, {count} tensors ({types}), {size}")
        if written.kept:
            say(f"{written.kept} tensors stay quantised as they are")
        if written.dequantised:
            became = "float16" if bits is None else f"{bits} bits"
            say(f"{written.dequantised} tensors of types that MLX lacks became {became}")
    if check:
        from localdpo.model.load import load_base
        from localdpo.model.trial import try_out

        trial = try_out(load_base(str(out)))
        record |= {"check": asdict(trial)}
        if not as_json:
            say(f"{trial.asked} -> {' '.join(trial.answer.split())}")
            say(f"perplexity {trial.perplexity:.2f} over the {trial.tokens} tokens of a built-in paragraph")
    if as_json:
        print_json(record)

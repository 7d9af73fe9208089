"""`localdpo import`: a model or an adapter of another program as a folder in mlx-lm's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localdpo.cli.options import JsonOption


def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A .gguf file, the folder of a model or a PEFT adapter, or a policy.pt."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, which must not exist.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Base of a policy.pt, or of an adapter. Default: the one it names.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="4|8", help="Quantise what the file has not quantised in a way MLX has. Default: 16 bits."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load a model, let it answer, print its perplexity.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Convert a GGUF file, a model, a PEFT adapter or a policy.pt into a folder in mlx-lm's layout."""
    from localdpo.model.backend import prepare
    from localdpo.out import note, result

    prepare(note)
    from localdpo.interop.importing import ImportRequest, import_path

    report = import_path(ImportRequest(source.expanduser(), out.expanduser(), model, bits, check))
    result(report.record, report.lines, as_json=as_json)

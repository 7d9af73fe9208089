"""`localdpo export` and `localdpo import`: to other programs, checked, and from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from localdpo.cli import options as opt
from localdpo.cli.plain import print_plain, print_table
from localdpo.core.errors import UserError
from localdpo.out import note, print_json, result
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from localdpo.interop.export import Export

FAILED_EXIT: Final = 1
TARGET_HELP: Final = "mlx, peft, hf (transformers), lmstudio, gguf, gguf-lora or ollama"


def export(
    run: opt.RunArgument = None,
    to: Annotated[str, typer.Option(metavar="TARGET", help=f"{TARGET_HELP}.")] = "mlx",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. Default: exports/RUN-TARGET.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(metavar="N", help="Bits of merged layers of a quantised base. Default: 8.")
    ] = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Make every layer dense.")] = False,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(help="Number type of --to hf. Default: the base's own if it has 16 bits, else float16."),
    ] = None,
    checkpoint: opt.CheckpointOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an earlier export, and keep one that fails its check."),
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload it to this model repository, after asking.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    as_json: opt.JsonOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Write the trained model or adapter for another program. The exit code is 1 if its check fails."""
    if yes and push is None:
        raise UserError("--yes: there is no --push to confirm")
    if push is not None and not yes and not sys.stdin.isatty():
        raise UserError(f"--push {push}: nobody can be asked here; give --yes to upload without asking")
    found = find_run(runs_dir, run)
    from localdpo.model.backend import prepare

    prepare(note)
    from localdpo.interop.export import ExportRequest
    from localdpo.interop.export import export as write
    from localdpo.interop.targets import Settings

    request = ExportRequest(found, to, out, Settings(bits, dequantize, dtype), checkpoint, force, push)
    done = write(request, note)
    record: dict[str, Any] = {**done.record, "path": str(done.path), "written": done.written}
    if not as_json:
        show(done)
    if done.written and push is not None and (yes or _agreed(done.path, push)):
        from localdpo.interop.export import push as upload

        record["url"] = upload(done.path, push)
        note(f"uploaded: {record['url']}")
    if as_json:
        print_json(record)
    if not done.written:
        raise typer.Exit(FAILED_EXIT)


def show(done: Export) -> None:
    """Print the table of the check, and what came of it."""
    from localdpo.interop.check import LEAST_KEPT, table
    from localdpo.out.console import Console

    console, check = Console(), done.check
    headings, *rows = table(check)
    print_table(console, headings, rows, right=headings[1:])
    lost = f"keeps {100 * check.kept:.1f}% of the {check.measure}, less than {100 * LEAST_KEPT:.0f}%"
    if not done.written:
        print_plain(
            console,
            f"failed, nothing written: it {lost}; more bits (--bits 8, --dequantize) lose less, "
            "--force keeps it all the same",
        )
        return
    if not check.passed:
        print_plain(console, f"warning: it {lost}; kept because of --force, and its card says so")
    print_plain(console, f"written: {done.path}")


def _agreed(folder: Path, repo: str) -> bool:
    try:
        return typer.confirm(f"upload {folder} to {repo} on the Hugging Face hub?", err=True)
    except typer.Abort:
        return False


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
            metavar="NAME", help="Base of a policy.pt, or of an adapter. Default: the one it names."
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
    as_json: opt.JsonOption = False,
) -> None:
    """Convert a GGUF file, a model, a PEFT adapter or a policy.pt.

    The result is a folder in mlx-lm's layout.
    """
    from localdpo.model.backend import prepare

    prepare(note)
    from localdpo.interop.importing import ImportRequest, import_path

    report = import_path(ImportRequest(source.expanduser(), out.expanduser(), model, bits, check))
    result(report.record, report.lines, as_json=as_json)

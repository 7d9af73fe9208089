"""`localdpo serve`: a run's model behind mlx-lm's server, for OpenAI clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localdpo.cli.options import (
    CheckpointOption,
    MaxTokensOption,
    RunArgument,
    RunsDirOption,
    TemperatureOption,
)


def serve(
    run: RunArgument = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")] = 8080,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    checkpoint: CheckpointOption = None,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Serve base + trained adapter with mlx_lm.server, once a request has shown that the adapter answers."""
    from localdpo.core.errors import UserError
    from localdpo.out import note, say
    from localdpo.records.rundir import find_run

    found = find_run(runs_dir, run)
    from localdpo.model.backend import prepare

    prepare(note)
    from localdpo.interop.serve import Served, require_free, strongest_probe
    from localdpo.interop.trained import open_trained
    from localdpo.launch.explain import failure

    require_free(host, port)
    trained = open_trained(found, checkpoint, note)
    probe = strongest_probe(trained)
    served = Served(trained, host, port, ["--max-tokens", str(max_tokens), "--temp", str(temperature)])
    try:
        note(served.check(probe))
        where = (
            "chat/completions" if probe.is_chat else "completions (trained on text without a chat template)"
        )
        say(f"serving {found.name} at {served.url}/v1: {where}, model {found.name!r}; Ctrl-C ends it")
        code = served.wait()
    finally:
        served.close()
    raise UserError(f"mlx-lm's server {failure(code)}")

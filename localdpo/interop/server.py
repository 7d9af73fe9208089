"""mlx-lm's server with an adapter: `python -m localdpo.interop.server NAMES OPTIONS...`.

NAMES is a JSON list; OPTIONS are those of mlx_lm.server. That server applies its adapter to requests for
`default_model` only: one that names the model by its folder, as its own list of models does, is answered by
the base. Here a request for any of NAMES is one for `default_model`. The process ends when its stdin does,
however whoever started it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from mlx_lm import server

from localdpo.model.backend import prepare
from localdpo.out import guard


def named(names: frozenset[str]) -> type[Any]:
    """mlx-lm's provider of models, with `names` for its default model."""

    class Provider(server.ModelProvider):
        def load(self, model_path: str, adapter_path: str | None = None, draft_model_path: Any = None) -> Any:
            if model_path in names:
                model_path, adapter_path = "default_model", None
            return super().load(model_path, adapter_path, draft_model_path)

    return Provider


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    # Ctrl-C is for whoever started this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    prepare()
    server.ModelProvider = named(frozenset(json.loads(sys.argv.pop(1))))
    server.main()

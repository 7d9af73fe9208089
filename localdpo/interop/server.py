"""mlx-lm's server with an adapter: `python -m localdpo.interop.server NAMES OPTIONS...`.

NAMES is a JSON list; OPTIONS are those of mlx_lm.server. That server applies its adapter to requests for
`default_model` only: one that names the model by its folder, as its own list of models does, is answered by
the base. Here a request for any of NAMES is one for `default_model`, the last of them is the one that is
listed, and for another name nothing is loaded. The process ends when its stdin closes, so it does not
outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm import server

from localdpo.model.backend import prepare
from localdpo.out import guard


def named(names: Sequence[str]) -> type[Any]:
    """mlx-lm's provider of models, with `names` for its default model. Raises ValueError for another name."""

    class Provider(server.ModelProvider):
        def load(self, model_path: str, adapter_path: str | None = None, draft_model_path: Any = None) -> Any:
            if model_path not in ("default_model", *names):
                raise ValueError(f"model {model_path!r} is not served here; expected {names[-1]!r}")
            return super().load("default_model", None, "default_model")

    return Provider


def listing(name: str) -> Callable[[Any], None]:
    """What answers /v1/models in place of mlx-lm's handler, which lists all models of the hub's cache."""

    def answer(handler: Any) -> None:
        handler._set_completion_headers(200)
        handler.end_headers()
        model = {"id": name, "object": "model", "created": handler.created}
        handler.wfile.write(json.dumps({"object": "list", "data": [model]}).encode())

    return answer


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    # The process that started this one handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    prepare()
    names = json.loads(sys.argv.pop(1))
    server.ModelProvider = named(names)
    server.APIHandler.handle_models_request = listing(names[-1])
    server.main()

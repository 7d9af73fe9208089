"""The train room: the worker process that turns a run folder with a recipe into an adapter.

docs/design.md lists the files of a training step in the order of reading. `localdpo.train` is the name of a
function of the Python API, too; once this room is loaded it is the room that bears the name, so it can be
called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from localdpo.core.process import preload

preload()


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("localdpo.api.training").train(*arguments, **options)


sys.modules[__name__].__class__ = _Room

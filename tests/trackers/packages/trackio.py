"""A stand-in for trackio: it keeps a run in a file, or raises an error with a secret in it."""

import json
import os
from pathlib import Path


class Table:
    def __init__(self, columns, data):
        self.rows = [dict(zip(columns, row, strict=True)) for row in data]


class Run:
    url = None

    def __init__(self, path):
        self.path = path
        self.rows = json.loads(path.read_text()) if path.exists() else []
        self._next_step = len(self.rows)

    def log(self, values, step):
        assert step == len(self.rows)
        self.rows.append({name: getattr(value, "rows", value) for name, value in values.items()})

    def finish(self):
        self.path.write_text(json.dumps(self.rows))


def init(project, name, **options):
    token = os.environ.get("HF_TOKEN")
    if token:
        raise RuntimeError(f"no Space for {token}")
    return Run(Path(f"{project}.json"))

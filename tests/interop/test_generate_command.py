"""`localdpo generate`: the trained adapter answers, in the template that the run was trained in."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from command import localdpo
from exported_runs import make_run

from localdpo.interop.trained import open_trained
from localdpo.model.load import load_base

pytestmark = pytest.mark.slow


def test_the_adapter_answers_greedily(tmp_path: Path, tiny_model: Path) -> None:
    """Each token is the likeliest one of a whole forward pass under base + adapter."""
    run = make_run(tmp_path, tiny_model)
    where = ["r", "--runs-dir", str(run.path.parent), "--max-tokens", "4"]
    done = localdpo("generate", *where, "--prompt", "one two", "--prompt", "three", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [answer["prompt"] for answer in found["answers"]] == ["one two", "three"]
    trained = open_trained(run, None, lambda line: None)
    tuned, plain = trained.as_trained(), load_base(str(tiny_model))
    assert found["adapter"] == str(trained.adapter)
    ids = mx.array([[3, 4, 5]])
    assert not np.allclose(np.array(tuned.model(ids)), np.array(plain.model(ids)))
    shown = localdpo("generate", *where, "--prompt", "three")
    assert shown.stdout == found["answers"][1]["answer"] + "\n"
    several = localdpo("generate", *where, "--prompt", "one two", "--prompt", "three").stdout
    assert several == "".join(f"> {a['prompt']}\n{a['answer']}\n" for a in found["answers"])


def test_mistakes_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    run = make_run(tmp_path, tiny_model)
    where = ["--runs-dir", str(run.path.parent)]
    for arguments, line in (
        (["r"], "error: generate: nothing to answer; give --prompt TEXT, once for each prompt"),
        (["r", "--prompt", " "], "error: --prompt: expected a text, got an empty one"),
        (["none", "--prompt", "x"], "error: "),
        (["r", "--prompt", "x", "--checkpoint", "7"], "error: "),
    ):
        done = localdpo("generate", *arguments, *where)
        assert done.returncode == 2, done.stderr
        (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        assert error.startswith(line)

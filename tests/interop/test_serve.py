"""A run behind mlx-lm's server: whoever names the model, the adapter answers; and the check that says so."""

from __future__ import annotations

import argparse
import json
import socket
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering_runs import PROMPTS, mlx_lm_answers, run_folder
from command import localdpo
from ports import reserved_ports

from localdpo.core.errors import UserError
from localdpo.interop import serve
from localdpo.interop.serve import Probe, Served, strongest_probe
from localdpo.interop.server import named
from localdpo.interop.trained import open_trained
from localdpo.records.rundir import RunDir


def answer(served: Served, model: str) -> str:
    """What an OpenAI client gets: the greedy answer to the first of PROMPTS."""
    body = {"model": model, "messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 8}
    request = urllib.request.Request(f"{served.url}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


@pytest.mark.long
def test_the_served_adapter_answers_an_openai_client_differently_from_the_base(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    run = run_folder(tmp_path / "runs" / "a", tiny_model, sft_adapter)
    trained = open_trained(run, None, print)
    probe = strongest_probe(trained)
    with reserved_ports(1) as (port,), closing(Served(trained, "127.0.0.1", port, [])) as served:
        assert served.check(probe).startswith("checked: the adapter answers: ")
        names = ["default_model", "a", str(tiny_model), trained.recipe.model]
        (same,) = {answer(served, name) for name in names}
        with urllib.request.urlopen(f"{served.url}/v1/models", timeout=60) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["a"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            answer(served, "gpt-4")
    base, adapted = (mlx_lm_answers(tiny_model, adapter, 8)[0] for adapter in (None, trained.adapter))
    assert base != adapted
    assert same == adapted
    # An adapter that localdpo can read, and mlx-lm cannot.
    (tmp_path / "empty").mkdir()
    broken = replace(trained, adapter=tmp_path / "empty")
    with (
        reserved_ports(1) as (port,),
        closing(Served(broken, "127.0.0.1", port, [])) as served,
        pytest.raises(
            UserError, match=r"empty: mlx-lm's server cannot answer with this adapter: .*No such file"
        ),
    ):
        served.check(probe)


def test_a_request_loads_nothing_but_the_run() -> None:
    arguments = argparse.Namespace(
        model="/m",
        adapter_path="/a",
        draft_model=None,
        trust_remote_code=False,
        chat_template="",
        pipeline=False,
    )
    loaded: list[Any] = []

    class Provider(named(["/m", "run"])):  # type: ignore[misc]
        def _load(self, *key: Any) -> None:
            loaded.append(key)

    provider = Provider(arguments)
    for name in ("default_model", "/m", "run"):
        provider.load(name, "/theirs", "/draft")
    for name in ("/other", "gpt-4", ""):
        with pytest.raises(ValueError, match="is not served here; expected 'run'"):
            provider.load(name, None, None)
    assert loaded == [("/m", "/a", None)] * 3


def served_as(logps: np.ndarray) -> Served:
    """A server that answers with these log-probabilities."""
    top = [{"id": int(i), "logprob": float(logps[i])} for i in np.argsort(-logps)[:10]]
    served = Served.__new__(Served)
    served.model = "/m"
    served._trained = argparse.Namespace(adapter="runs/a", run=RunDir("runs/a"))  # type: ignore[assignment]
    served._ask = lambda path, asked: {  # type: ignore[method-assign]
        "choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}],
        "usage": {"prompt_tokens": 5},
    }
    return served


def test_the_check_tells_adapter_and_base_apart_and_says_when_it_cannot() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(-5.0, 1.0, 50)
    probe = Probe("Hello", True, 5, base + rng.normal(0.0, 0.5, 50), base)
    noise = rng.normal(0.0, 0.02, 50)
    assert served_as(probe.adapter + noise).check(probe).startswith("checked: the adapter answers: ")
    with pytest.raises(UserError, match=r"runs/a: .* does not apply this adapter, the base answers"):
        served_as(base + noise).check(probe)
    assert (
        served_as((probe.adapter + base) / 2).check(probe).startswith("not certain that the adapter answers")
    )
    other = served_as(probe.adapter).check(replace(probe, tokens=7))
    assert other.endswith("; it makes 5 tokens of a prompt that had 7 in training")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot be used .Address already in use.; give"):
            serve.require_free("127.0.0.1", port)
    done = localdpo("serve", "none", "--runs-dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")

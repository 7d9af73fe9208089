from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localdpo.cli import doctor as module
from localdpo.cli.doctor import KEYS, PACKAGES, blas, demo, examine, key, memory, package
from localdpo.core import names

CANARY = "sk-canary-4711"


def test_keys_are_present_or_not_and_never_shown():
    done = subprocess.run(
        [sys.executable, "-m", "localdpo", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={
            **{k: v for k, v in os.environ.items() if k not in KEYS},
            "ANTHROPIC_API_KEY": CANARY,
            "HF_TOKEN": "",
        },
    )
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert lines["ANTHROPIC_API_KEY"].endswith("  present")
    assert lines["HF_TOKEN"].endswith("  not set")
    assert lines["OPENAI_API_KEY"].endswith("  not set")
    assert CANARY not in done.stdout + done.stderr


def test_json_has_every_finding(capsys: pytest.CaptureFixture[str]):
    module.doctor(as_json=True)
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"system", "device", "memory", "python", "blas", "demo bundle", *PACKAGES, *KEYS} == set(found)
    assert all(finding["state"] in ("ok", "info", "missing") for finding in found.values())
    assert found["device"]["value"] in ("metal", "cuda", "cpu")
    assert [f.name for f in examine({})] == list(found)


def test_a_missing_package_says_what_to_do():
    finding = package("no-such-package-of-ours")
    assert (finding.state, finding.value, finding.hint) == ("missing", "not installed", "run `make setup`")


def test_missing_openblas_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("LOCALDPO_OPENBLAS", "off")
    finding = blas()
    assert finding.state == "missing"
    assert finding.hint is not None
    assert "libopenblas0-pthread" in finding.hint
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas().value == "Accelerate"


def test_memory_is_pages_times_their_size():
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    assert memory(sizes.__getitem__).value == "4.0 GiB"


def test_an_empty_key_is_no_key():
    assert key("HF_TOKEN", {"HF_TOKEN": ""}).value == "not set"
    assert key("HF_TOKEN", {}).value == "not set"


def test_a_demo_bundle_with_holes_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resolve = names.resolve
    monkeypatch.setattr(module, "resolve", lambda name: resolve(name, tmp_path))
    (tmp_path / "model").mkdir()
    finding = demo()
    assert finding.state == "missing"
    assert finding.value.startswith("without demo:sft, ")
    assert "demo:model" not in finding.value


def test_a_macos_system_names_its_chip(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module, "sysctl", lambda name: "Apple M4")
    monkeypatch.setattr(module.platform, "mac_ver", lambda: ("26.0", ("", "", ""), "arm64"))
    monkeypatch.setattr(module, "mlx_device", lambda: module.MachineFact("device", "metal", "ok"))
    assert module.devices()[0].value == "macOS 26.0, Apple M4"


def test_a_device_that_was_chosen_says_by_what(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCALDPO_DEVICE", "cpu")
    assert module.mlx_device() == module.MachineFact("device", "cpu", "ok", "by LOCALDPO_DEVICE=cpu")
    monkeypatch.setenv("LOCALDPO_DEVICE", "auto")
    assert module.mlx_device().hint is None


def test_an_unknown_machine_is_not_a_failure():
    assert module.sysctl("no.such.name") is None

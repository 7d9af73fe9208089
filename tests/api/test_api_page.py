"""docs/api.md: its examples run, one after the other, with the demo's model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text((ROOT / "recipes" / "dpo.yaml").read_text())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    out = capsys.readouterr().out
    assert "finished runs/first" in out
    assert "saving and stopping" in out
    assert "0.598" in out
    assert "<svg" in str(names["html"])

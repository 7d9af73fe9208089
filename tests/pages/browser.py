"""Pages in headless Chromium: what they measure at given widths."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# Each page sits in a frame of the wanted width, since a browser's own window has a least one. The frames'
# documents are of the wrapper's origin (srcdoc), so the wrapper may measure what no script in a page could.
_FRAME = '<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>'
_WRAPPER = """<!doctype html><body style="margin:0">
%s
<script>
const measured = (frame) => {
  const root = frame.contentDocument.documentElement;
  const wide = [...root.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll, pre") && element.getBoundingClientRect().right > frame.clientWidth + 0.5);
  return {
    scrollWidth: root.scrollWidth,
    clientWidth: root.clientWidth,
    wide: wide.map((element) => element.tagName),
    text: root.innerText.length,
    images: frame.contentDocument.images.length,
    ran: "hit" in frame.contentWindow || "hit" in window,
  };
};
window.onload = () => {
  const line = document.createElement("pre");
  line.id = "found";
  line.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
  document.body.append(line);
};
</script></body>"""


def measure(pages: Sequence[tuple[str, int]], folder: Path) -> list[dict[str, Any]]:
    """Each page at its width in CSS pixels: scrollWidth, clientWidth, tags of elements that stick out, ..."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: the page is not measured in a browser")
    frames = "\n".join(_FRAME.format(width=width, page=html.escape(page)) for page, width in pages)
    wrapper = folder / "wrapper.html"
    wrapper.write_text(_WRAPPER % frames, encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            "--hide-scrollbars",
            "--virtual-time-budget=4000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    measured: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return measured

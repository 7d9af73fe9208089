"""A page in headless Chromium: what it measures at a given width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# The page sits in a frame of the wanted width, since a browser's own window has a least one. The frame's
# document is of the wrapper's origin (srcdoc), so the wrapper may measure what no script in the page could.
_WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="page" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const wide = [...root.querySelectorAll("body *")].filter(
    (element) => !element.closest(".scroll, pre") && element.getBoundingClientRect().right > {width} + 0.5);
  const found = {{
    scrollWidth: root.scrollWidth,
    clientWidth: root.clientWidth,
    wide: wide.map((element) => element.tagName),
    text: root.innerText.length,
    images: frame.contentDocument.images.length,
    ran: "hit" in frame.contentWindow || "hit" in window,
  }};
  const line = document.createElement("pre");
  line.id = "found"; line.textContent = JSON.stringify(found); document.body.append(line);
}};
</script></body>"""


def measure(page: str, folder: Path, width: int) -> dict[str, Any]:
    """The page at `width` CSS pixels: scrollWidth, clientWidth, tags of elements that stick out, ..."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: the page is not measured in a browser")
    wrapper = folder / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(width=width, page=html.escape(page)), encoding="utf-8")
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
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured

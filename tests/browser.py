"""Load a page in a headless browser and see what it looks like: Chromium, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROBE = (Path(__file__).parent / "page_probe.js").read_text()


def find_browser() -> str:
    """The browser's path; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH: install one (Debian: apt-get install chromium)")
    return found


def probe_page(page: Path, folder: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """What PROBE finds in `page` at a width in CSS pixels; `console`: what was written there.

    The page is in a frame, as no window of a browser is as narrow as a phone.
    """
    errors = "<script>window.errors=[];window.onerror=(m)=>{window.errors.push(String(m))}</script>"
    text = page.read_text().replace("<head>", f"<head>{errors}", 1)
    framed = folder / "framed.html"
    framed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    outer = folder / "outer.html"
    outer.write_text(
        "<!DOCTYPE html><body><script>onmessage = (event) => {"
        "document.body.dataset.found = event.data }</script>"
        f'<iframe src="{framed.name}" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    command = [
        find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=3000",
        *(["--force-dark-mode"] if dark else []), outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, (
        f"the page answered nothing: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )
    return {
        **json.loads(unescape(found[1])),
        "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line],
    }

"""Drawings of the docs: what is in them, whatever version of matplotlib drew them."""

from __future__ import annotations

import os
import re
from pathlib import Path


def check_drawing(page: Path, drawn: str) -> None:
    """The file `page` has the elements of the SVG `drawn`; `make accept` writes it anew."""
    if os.environ.get("EXPECTTEST_ACCEPT") == "1":
        page.write_text(drawn)
    assert list_elements(page.read_text()) == list_elements(drawn)


def list_elements(svg: str) -> list[str]:
    """The names that the drawing gives to its elements, in order; matplotlib's have no dash."""
    return re.findall(r'<g id="([^"]+-[^"]+)">', svg)

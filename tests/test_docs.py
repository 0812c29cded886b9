"""The pages of docs/ and the README: what the tool that builds them does not check."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxoffload

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))


def read_navigation(entry: object) -> Iterator[str]:
    """The pages of the navigation in zensical.toml, in their order."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        for item in entry:
            yield from read_navigation(item)
    elif isinstance(entry, dict):
        for item in entry.values():
            yield from read_navigation(item)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = tomllib.loads((ROOT / "zensical.toml").read_text())
    named = sorted(read_navigation(settings["project"]["nav"]))
    assert named == sorted(page.name for page in DOCS.glob("*.md"))


def test_every_public_name_is_in_the_reference_once() -> None:
    named = re.findall(r"^::: fxoffload\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(fxoffload.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_options_are_those_of_the_config_with_their_defaults() -> None:
    text = (DOCS / "options.md").read_text()
    defaults = dict(re.findall(r"^## (\w+)\n\nDefault: `(.+)`$", text, re.MULTILINE))
    names = [field.name for field in dataclasses.fields(fxoffload.OffloadConfig)]
    assert list(defaults) == names == re.findall(r"^## (\w+)$", text, re.MULTILINE)
    for name, default in defaults.items():
        chosen = fxoffload.OffloadConfig(**{name: ast.literal_eval(default)})
        assert chosen == fxoffload.OffloadConfig(), name


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\| (?!model).*MiB.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 3
    lines = (DOCS / "benchmarks.md").read_text().splitlines()
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert any(all(cell in line for cell in cells) for line in lines), row

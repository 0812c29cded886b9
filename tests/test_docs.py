"""The pages of docs/ and the README: what the tool that builds them does not check."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from drawings import check_drawing
from torch import nn

import fxoffload
from fxoffload import backend, errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
# A block of Python, with the block of what it prints if there is one.
BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```(?:text|diff)\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
INVENTED = {"toyplan.py", "config.json"}  # Files of users.
NUMBER = re.compile(r"\d+\.\d+")
MEASURED = re.compile(r"\d+\.\d+(?:e[+-]\d+)?|\d+(?:e\+\d+)?(?= GB/s)|(?<=back at )\S+")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_files_and_commands_that_pages_name_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    folders = ("fxoffload", "passes", "runtime", "tests", "examples", "benchmarks", "docs")
    files = {f"/{f.relative_to(ROOT)}" for name in folders for f in (ROOT / name).rglob("*.*")}
    files |= {f"/{file.name}" for file in ROOT.glob("*.*")}
    named = set(re.findall(r"`([\w./]+\.(?:py|md|toml|json|jsonl|c))`", text)) - INVENTED
    named |= {f"benchmarks/{x}.py" for x in re.findall(r"-m\s+benchmarks\.([a-z_]+)", text)}
    assert not {name for name in named if not any(file.endswith(f"/{name}") for file in files)}
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make (\w+)", text, re.MULTILINE)) <= targets


def test_names_for_contributors_are_defined_in_the_files_that_are_named() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"`(\w+)`(?: and `(\w+)`)? in\s`([\w/]+\.py)`", text)
    assert found
    for *names, path in found:
        for name in filter(None, names):
            definition = rf"^(?:\s*def {name}\(|{name} = )"
            assert re.search(definition, (ROOT / path).read_text(), re.MULTILINE), name


def test_every_public_name_is_in_the_reference_once() -> None:
    named = re.findall(r"^::: fxoffload\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(fxoffload.__all__)


def test_every_error_is_explained() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    explained = [name for heading in headings for name in heading.split(" and ")]
    kinds = {name: it for name, it in vars(errors).items() if isinstance(it, type)}
    defined = [name for name, it in kinds.items() if issubclass(it, errors.OffloadError)]
    assert sorted(explained) == sorted({*defined, "Warnings"} - {"OffloadError"})


def test_options_are_those_of_the_config_with_their_defaults() -> None:
    text = (DOCS / "options.md").read_text()
    defaults = dict(re.findall(r"^## (\w+)\n\nDefault: `(.+)`$", text, re.MULTILINE))
    names = [field.name for field in dataclasses.fields(fxoffload.OffloadConfig)]
    assert list(defaults) == names == re.findall(r"^## (\w+)$", text, re.MULTILINE)
    for name, default in defaults.items():
        chosen = fxoffload.OffloadConfig(**{name: ast.literal_eval(default)})
        assert chosen == fxoffload.OffloadConfig(), name


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\| .*MiB.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    lines = [set(NUMBER.findall(x)) for x in (DOCS / "benchmarks.md").read_text().splitlines()]
    for row in rows:
        assert any(set(NUMBER.findall(row)) <= line for line in lines), row


# --- blocks -------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.head = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x).tanh())


def make_rows(batch: int) -> torch.Tensor:
    """So large that few of them fill the memory of a GPU."""
    return torch.empty(batch, 2**20, 64, device="meta")


def prepare(page: Path) -> dict[str, Any]:
    """What the blocks of a page use and do not define, behind a job where they look at one."""
    toy, x = Toy(), torch.ones(2**13, 64)
    step = fxoffload.compile(toy, memory_budget="min")
    if page.name == "report.md":
        for _ in range(3):
            step(x).sum().backward()
    return {
        "README.md": {"torch": torch, "model": toy},
        "marks.md": {"fxoffload": fxoffload, "self": toy, "h": torch.ones(4, 64)},
        "options.md": {"model": toy},
        "report.md": {"fxoffload": fxoffload, "Path": Path, "model": toy, "step": step, "x": x},
        "planner.md": {"build_model": Toy, "make_tokens": make_rows},
    }.get(page.name, {})


# Those of the trainers' page need what test_trainers.py makes for them.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text() and page.name != "trainers.md"],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("fresh_dynamo", "fresh_programs")
def test_blocks_run_and_print_what_the_page_says(
    page: Path, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, as one script, without Inductor; measured numbers may be others."""
    monkeypatch.setenv("FXOFFLOAD_COMPILER", "eager")
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", str(spill_directory))
    monkeypatch.chdir(spill_directory)
    monkeypatch.setattr(backend, "_compiled", [])
    fxoffload.reset_statistics()
    module = ModuleType(f"page_{page.stem}")  # Dynamo looks globals up in it, by its name.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(prepare(page))
    for code, expected in BLOCK.findall(page.read_text()):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page.name, "exec"), vars(module))
        if expected:
            assert MEASURED.sub("#", printed.getvalue()) == MEASURED.sub("#", expected)
    for drawn in spill_directory.glob("*.svg"):
        check_drawing(DOCS / drawn.name, drawn.read_text())

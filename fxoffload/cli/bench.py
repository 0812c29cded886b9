"""The command that runs the benchmarks of a clone.

They are no part of the wheel: they read and write records in the clone, and their parts that need
fio, a block device or a GPU are for those who change fxoffload. `benchmarks/runner.py` runs them.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fxoffload.cli.output import JsonOption, print_json
from fxoffload.errors import ConfigError
from fxoffload.hints import find_hint
from fxoffload.tables import format_table

CLONE = Path(__file__).parents[2]
# Suites by name, with a rough estimate of how long they take by default on two cores: from the
# compilations and steps that they make, and from what these took in the kept records.
SUITES = {
    "activation_peak": "10 minutes",
    "programs": "10 minutes",
    "throughput": "a quarter of an hour",
    "rok": "half an hour",
    "depth": "10 minutes",
    "slow_drive": "half an hour",
    "compile_time": "half an hour",
    "io_engine": "half an hour",
    "op_time": "2 minutes",
    "checksum_cost": "2 minutes",
    "planning_time": "2 minutes",
    "limits": "half an hour",
    "published": "5 minutes",
}


def bench(
    suite: Annotated[
        str | None, typer.Argument(help="A suite; without it, all are listed.")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FLAGS]...", help="Flags of the suite; --help lists them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the benchmark suites, or run one of them. Needs a clone of the repository.

    A suite prints tables, and adds its record to build/results/SUITE.jsonl of the clone.
    """
    if suite is None:
        shown = {name: describe_suite(name) for name in SUITES}
        if as_json:
            print_json([{"suite": n, "shows": shown[n], "takes": SUITES[n]} for n in SUITES])
        else:
            rows = [(name, SUITES[name], shown[name]) for name in SUITES]
            typer.echo(format_table([("suite", "takes about", "what it does"), *rows]))
        return
    if as_json:
        raise ConfigError("records of suites are JSON lines already; pass --output FILE behind it")
    load_suite(suite)(arguments or [])


def describe_suite(name: str) -> str:
    """The first line of the page of the suite. Raises ConfigError without a clone."""
    page = find_benchmarks() / f"{name}.py"
    first, *_ = (ast.get_docstring(ast.parse(page.read_text())) or "").splitlines()
    return first


def load_suite(name: str) -> Callable[[list[str]], None]:
    """What runs the suite with its flags.

    Raises ConfigError for an unknown suite, without a clone, or without a package that it needs.
    """
    if name not in SUITES:
        hint = find_hint(name, list(SUITES))
        raise ConfigError(f"suite={name!r} is unknown; {hint}known suites: {list(SUITES)}")
    folder = str(find_benchmarks().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(f"benchmarks.{name}").main
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"suite={name!r} needs the package {error.name}; "
            'pip install "fxoffload[demo,models]", or run make setup in the clone'
        ) from error


def find_benchmarks() -> Path:
    """The folder of the suites in the clone that this is imported from, else ConfigError."""
    folder = CLONE / "benchmarks"
    if not (folder / "runner.py").is_file():
        raise ConfigError(
            "the benchmarks are not part of the installed package; clone the repository, run make "
            "setup in it, and then .venv/bin/fxoffload bench"
        )
    return folder

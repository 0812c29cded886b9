"""The command that runs the benchmarks of a clone.

They are no part of the wheel: they read and write records in the clone, and their parts that need
fio, a block device or a GPU are for those who change fxoffload. `benchmarks/runner.py` runs them.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fxoffload.cli.output import MISSED, USAGE, JsonOption, print_error, print_json
from fxoffload.errors import ConfigError
from fxoffload.hints import find_hint
from fxoffload.tables import format_table

CLONE = Path(__file__).parents[2]
# Suites by name, with a rough estimate of the minutes that they take by default on two cores: from
# the compilations and steps that they make, and from what these took in the kept records.
SUITES = {
    "activation_peak": 10,
    "programs": 10,
    "throughput": 15,
    "rok": 30,
    "depth": 10,
    "slow_drive": 30,
    "compile_time": 30,
    "io_engine": 30,
    "op_time": 2,
    "checksum_cost": 2,
    "planning_time": 2,
    "limits": 30,
    "published": 5,
}
# Those that the word `standard` runs: each promise once, in less than an hour.
STANDARD_NAME = "standard"
STANDARD = (
    "activation_peak",
    "programs",
    "throughput",
    "depth",
    "op_time",
    "checksum_cost",
    "planning_time",
    "published",
)


def bench(
    suite: Annotated[
        str | None,
        typer.Argument(
            help='A suite, or "standard" for those marked with *; without it, all are listed.'
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FLAGS]...", help="Flags of the suite; --help lists them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the benchmark suites, or run one of them. Needs a clone of the repository.

    A suite prints tables, and adds its record to build/results/SUITE.jsonl of the clone. Exit code
    1 if a suite fails, or misses a limit with --check.
    """
    if suite is None:
        shown = {name: describe_suite(name) for name in SUITES}
        if as_json:
            print_json(
                [
                    {"suite": n, "shows": shown[n], "minutes": SUITES[n], "standard": n in STANDARD}
                    for n in SUITES
                ]
            )
        else:
            rows = [
                (f"{name}{' *' if name in STANDARD else ''}", str(SUITES[name]), shown[name])
                for name in SUITES
            ]
            typer.echo(format_table([("suite", "minutes", "what it does"), *rows]))
            minutes = sum(SUITES[name] for name in STANDARD)
            typer.echo(f"* {STANDARD_NAME}: about {minutes} minutes together")
        return
    if as_json:
        raise ConfigError("records of suites are JSON lines already; pass --output FILE behind it")
    if suite == STANDARD_NAME:
        run_standard(arguments or [])
    else:
        load_suite(suite)(arguments or [])


def run_standard(arguments: Sequence[str]) -> None:
    """Run the suites of STANDARD with the flags `arguments`, each in a process of its own.

    The others run if one fails; then the exit code is 1, or 2 where all find the flags wrong.
    """
    folder = find_benchmarks().parent
    codes: list[int] = []
    for name in STANDARD:
        typer.echo(f"# {name}: about {SUITES[name]} minutes", err=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        codes.append(subprocess.run(command, cwd=folder, check=False).returncode)
    failed = [f"{name} ({code})" for name, code in zip(STANDARD, codes, strict=True) if code]
    if failed:
        print_error(f"suites with an exit code other than 0: {', '.join(failed)}")
        raise typer.Exit(USAGE if min(codes) == USAGE else MISSED)


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
        known = [STANDARD_NAME, *SUITES]
        raise ConfigError(f"suite={name!r} is unknown; {hint}known suites: {known}")
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

"""The entry point of the command line."""

from __future__ import annotations

import sys

_PACKAGES = ("typer", "rich")


def main() -> None:
    """Run the command line; ends the process with its exit code.

    Without the packages of the extra `cli`: one line that names the command of pip, exit code 2.
    """
    try:
        from fxoffload.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        print(
            f"fxoffload: the command line needs the package {error.name}, which is not installed; "
            'pip install "fxoffload[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app(prog_name="fxoffload")

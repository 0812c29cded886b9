"""The command line that the examples of trainers share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_options(arguments: Sequence[str] | None, description: str | None) -> dict[str, Any]:
    """text, steps, and options of fxoffload, by name. arguments: None are those of the process."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "LICENSE")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory-budget", default="min", help='bytes, "20MiB" or "min"')
    parser.add_argument("--directory", help="a folder on a disk; default: see OffloadConfig")
    parser.add_argument("--compiler", choices=["inductor", "eager"], default="inductor")
    options = vars(parser.parse_args(arguments))
    options["text"] = options["text"].read_bytes()
    return options

"""Options from environment variables, for launchers that pass on only the name of a backend.

`FXOFFLOAD_MEMORY_BUDGET=8GiB` is the default of the option `memory_budget`; an empty variable is
not set. `directories.py` reads the variable of `directory`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from typing import Any

from fxoffload.directories import DIRECTORY_VARIABLE
from fxoffload.errors import ConfigError
from fxoffload.hints import find_hint

PREFIX = "FXOFFLOAD_"

_BOOLS = {"1": True, "true": True, "0": False, "false": False}


def name_variable(option: str) -> str:
    """The variable that holds the default of `option`."""
    return f"{PREFIX}{option.upper()}"


def read_options(valid: Collection[str]) -> dict[str, Any]:
    """The options that variables set, by name, except `directory`. valid: names of all options.

    Raises ConfigError for a variable that belongs to none of `valid`, and for text that is no bool
    or no JSON where one is needed. Other text is checked with the option.
    """
    options = {name_variable(name): name for name in valid}
    found: dict[str, Any] = {}
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(PREFIX):
            continue
        if variable not in options:
            hint = find_hint(
                variable.removeprefix(PREFIX).upper(),
                [name.upper() for name in valid],
                prefix=PREFIX,
            )
            raise ConfigError(
                f"the environment variable {variable} belongs to no option; {hint}"
                f"unset it, or set one of {sorted(options)}"
            )
        if text and variable != DIRECTORY_VARIABLE:
            name = options[variable]
            found[name] = _PARSERS.get(name, _keep_text)(variable, text)
    return found


def _keep_text(variable: str, text: str) -> str:
    return text


def _parse_bool(variable: str, text: str) -> bool:
    value = _BOOLS.get(text.lower())
    if value is None:
        raise ConfigError(f"{variable}={text!r} is not a bool; set 1 or 0, true or false")
    return value


def _parse_object(variable: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(
            f'{variable}={text!r} is not a JSON object; set names and values such as {{"name": 1}}'
        )
    return {str(name): option for name, option in value.items()}


# For the options that OffloadConfig does not take as text.
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "checksum": _parse_bool,
    "enabled": _parse_bool,
    "hardware": _parse_object,
    "inductor": _parse_object,
}

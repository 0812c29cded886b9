"""Variables of the environment as defaults of the options."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import HARDWARE

import fxoffload
from fxoffload.config import OffloadConfig
from fxoffload.environment import PREFIX, name_variable, read_options
from fxoffload.errors import ConfigError

NAMES = [field.name for field in dataclasses.fields(OffloadConfig)]
# Of each option: the text of its variable, and the same in code.
TEXTS: dict[str, tuple[str, Any]] = {
    "directory": ("/a:/b", ["/a", "/b"]),
    "memory_budget": ("8GiB", "8GiB"),
    "device_memory": ("90%", 0.9),
    "host_budget": ("1GiB", 2**30),
    "min_bytes": ("1", 1),
    "max_inflight_bytes": ("64MiB", "64MiB"),
    "ioengine": ("posix", "posix"),
    "checksum": ("1", True),
    "endurance": ("600TBW", "600TBW"),
    "hardware": (json.dumps(HARDWARE), HARDWARE),
    "compiler": ("eager", "eager"),
    "mode": ("max-autotune", "max-autotune"),
    "inductor": ('{"shape_padding": false}', {"shape_padding": False}),
    "enabled": ("False", False),
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith(PREFIX):
            monkeypatch.delenv(variable)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = TEXTS[name]
    monkeypatch.setenv(name_variable(name), text)
    found, expected = OffloadConfig.from_options(None), OffloadConfig(**{name: value})
    if name == "directory":
        assert found.directories == expected.directories
    else:
        assert found == expected != OffloadConfig()


def test_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXOFFLOAD_MEMORY_BUDGET", "8GiB")
    monkeypatch.setenv("FXOFFLOAD_MODE", "max-autotune")
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", "/variable")
    given = {"memory_budget": None, "directory": "/code"}
    config = OffloadConfig.from_options(given, mode="default")
    assert (config.budget_bytes, config.mode) == (None, "default")
    assert config.directories == (Path("/code"),)


def test_without_a_directory_in_code_its_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", "/a:/b")
    for config in (OffloadConfig(), OffloadConfig.from_options({"directory": None})):
        assert config.directories == (Path("/a"), Path("/b"))


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name_variable(name), "")
    assert read_options(NAMES) == {}
    assert OffloadConfig.from_options(None) == OffloadConfig()


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("MEMORY_BUDGET", "lots", "memory_budget='lots' is not a size; .*; set by {}$"),
        ("MAX_INFLIGHT_BYTES", "0", "max_inflight_bytes=0 allows no transfer; .*; set by {}$"),
        ("IOENGINE", "posics", "ioengine='posics' is unknown; did you mean 'posix'.*; set by {}$"),
        ("ENDURANCE", "long", "endurance='long' is not a write rating; .*; set by {}$"),
        ("CHECKSUM", "maybe", "^{}='maybe' is not a bool; set 1 or 0, true or false"),
        ("ENABLED", "2", "^{}='2' is not a bool"),
        ("INDUCTOR", "shape_padding", "^{}='shape_padding' is not a JSON object; set names"),
        ("HARDWARE", "H100", "^{}='H100' is not a JSON object; set names"),
        ("HARDWARE", "{}", "hardware=.* does not describe hardware.*; set by {}$"),
        ("INDUCTOR", "[1]", "^{}='.1.' is not a JSON object"),
        ("INDUCTOR", '{"shape_paddin": 1}', "unknown to Inductor; did you mean.*; set by {}$"),
    ],
)
def test_errors_name_the_variable(
    variable: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + variable, text)
    with pytest.raises(ConfigError, match=words.format(PREFIX + variable)):
        OffloadConfig.from_options(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/a::/b", "^FXOFFLOAD_DIRECTORY='/a::/b' has an empty path; set one path"),
        ("/a:/a", "names a directory twice; set by FXOFFLOAD_DIRECTORY$"),
    ],
)
def test_bad_directories(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", text)
    with pytest.raises(ConfigError, match=words):
        _ = OffloadConfig.from_options(None).directories


def test_a_variable_that_disagrees_with_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXOFFLOAD_COMPILER", "eager")
    monkeypatch.setenv("FXOFFLOAD_MIN_BYTES", "1")
    with pytest.raises(ConfigError, match=r"for Inductor, which .*; set by FXOFFLOAD_COMPILER$"):
        OffloadConfig.from_options({"mode": "max-autotune"})


def test_an_error_of_the_code_names_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXOFFLOAD_MEMORY_BUDGET", "8GiB")
    with pytest.raises(ConfigError) as caught:
        OffloadConfig.from_options({"min_bytes": "few", "memory_budget": "min"})
    assert PREFIX not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("FXOFFLOAD_MEMORY_BUGDET", "FXOFFLOAD_MEMORY_BUDGET"),
        ("FXOFFLOAD_DIR", "FXOFFLOAD_DIRECTORY"),
        ("FXOFFLOAD_memory_budget", "FXOFFLOAD_MEMORY_BUDGET"),
        ("FXOFFLOAD_XYZ", None),
    ],
)
def test_unknown_variable(variable: str, near: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    with pytest.raises(ConfigError) as caught:
        OffloadConfig.from_options(None)
    message = str(caught.value)
    assert message.startswith(f"the environment variable {variable} belongs to no option; ")
    assert "unset it, or set one of ['FXOFFLOAD_CHECKSUM', " in message
    assert ("did you mean" in message) is (near is not None)
    assert near is None or f"did you mean {near!r}?" in message


def test_a_backend_by_its_name_alone(
    spill_directory: Path, fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As launchers compile."""
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", str(spill_directory))
    monkeypatch.setenv("FXOFFLOAD_MEMORY_BUDGET", "min")
    monkeypatch.setenv("FXOFFLOAD_MIN_BYTES", "1")
    monkeypatch.setenv("FXOFFLOAD_COMPILER", "eager")
    fxoffload.reset_statistics()
    weight = torch.ones(8, 8, requires_grad=True)
    step = torch.compile(lambda x: (x @ weight).tanh() @ weight, backend="fxoffload")
    step(torch.ones(8, 8)).sum().backward()
    assert fxoffload.statistics().offloaded_bytes > 0

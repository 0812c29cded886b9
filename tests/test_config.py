"""OffloadConfig: accepted options, and the error for each invalid one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import HARDWARE

from fxoffload import config as config_module
from fxoffload.config import OffloadConfig, parse_bytes
from fxoffload.directories import DIRECTORY_VARIABLE
from fxoffload.errors import ConfigError
from fxoffload.hardware import Hardware

# --- fields -------------------------------------------------------------------------------------


def test_defaults() -> None:
    config = OffloadConfig()
    assert config.memory_budget is None
    assert config.budget_bytes is None
    assert config.host_bytes is None
    assert config.min_storage_bytes == 2**20
    assert config.inflight_bytes is None
    assert (config.ioengine, config.compiler, config.enabled) == ("auto", "inductor", True)
    assert (config.checksum, config.endurance_bytes) == (False, None)


def test_sizes_become_bytes() -> None:
    config = OffloadConfig(
        memory_budget="8GiB", host_budget="1 GB", min_bytes="64KiB", max_inflight_bytes="0.5MiB"
    )
    assert config.budget_bytes == config.memory_budget == 8 * 2**30
    assert config.host_bytes == 10**9
    assert config.min_storage_bytes == 2**16
    assert config.inflight_bytes == 2**19


def test_min_is_no_number_of_bytes() -> None:
    config = OffloadConfig(memory_budget="min")
    assert config.memory_budget == "min"
    assert config.budget_bytes is None


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OffloadConfig().enabled = False  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("17", 17), ("17B", 17), ("2kb", 2000), ("2KB", 2000), ("2 MB", 2 * 10**6),
        ("3GB", 3 * 10**9), ("1TB", 10**12), ("2KiB", 2048), ("2mib", 2 * 2**20),
        ("1.5 GiB", 3 * 2**29), (" 20GiB ", 20 * 2**30), ("1TiB", 2**40), (5, 5), (0, 0),
    ],
)  # fmt: skip
def test_parse_bytes(text: int | str, nbytes: int) -> None:
    assert parse_bytes("memory_budget", text) == nbytes


@pytest.mark.parametrize(
    "value", ["lots", "", "GiB", "-1", "1e9", "8 GiB x", "8Gi", "1.GiB", 1.5, True, [], -1]
)
@pytest.mark.parametrize(
    "field", ["memory_budget", "host_budget", "min_bytes", "max_inflight_bytes"]
)
def test_bad_sizes(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        OffloadConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r} is ")
    assert '"8GiB"' in message
    assert ('"min"' in message) is (field == "memory_budget")


def test_a_size_that_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="min_bytes=None is not a size"):
        OffloadConfig(min_bytes=None)  # pyright: ignore[reportArgumentType]


def test_nothing_in_flight_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_inflight_bytes=0 allows no transfer"):
        OffloadConfig(max_inflight_bytes="0MiB")


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [
        ("ioengine", "posics", "posix"),
        ("ioengine", "cufile", None),
        ("ioengine", "Memory", "memory"),
        ("compiler", "induktor", "inductor"),
        ("compiler", None, None),
        ("mode", "max-autotun", "max-autotune"),
        ("mode", "fastest", None),
    ],
)
def test_bad_choices(field: str, value: Any, near: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value!r} is unknown") as caught:
        OffloadConfig(**{field: value})
    assert "valid values: [" in str(caught.value)
    if near is not None:
        assert f"did you mean {near!r}?" in str(caught.value)


@pytest.mark.parametrize("field", ["enabled", "checksum"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_bool_is_a_bool(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field}=.* is not a bool; pass True or False"):
        OffloadConfig(**{field: value})


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [
        ("600TBW", 600 * 10**12), ("1.2 pbw", 12 * 10**14), ("600TB", 600 * 10**12),
        ("1TiB", 2**40), (5, 5),
    ],
)  # fmt: skip
def test_endurance(value: int | str, nbytes: int) -> None:
    assert OffloadConfig(endurance=value).endurance_bytes == nbytes


@pytest.mark.parametrize("value", ["600TW", "TBW", "600TBWs", "-1TBW", 0, -1, 1.5, True])
def test_bad_endurance(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        OffloadConfig(endurance=value)
    assert str(caught.value).startswith(f"endurance={value!r} is not a write rating; ")
    assert '"600TBW"' in str(caught.value)


@given(st.integers(0, 2**60))
def test_ints_stay(nbytes: int) -> None:
    assert OffloadConfig(memory_budget=nbytes).budget_bytes == nbytes
    assert parse_bytes("memory_budget", str(nbytes % 2**50)) == nbytes % 2**50


# --- Inductor -----------------------------------------------------------------------------------


def test_hardware_by_its_fields() -> None:
    config = OffloadConfig(hardware=HARDWARE)
    assert config.stated_hardware == Hardware(**HARDWARE)
    assert config == OffloadConfig(hardware=Hardware(**HARDWARE))
    assert hash(config) == hash(OffloadConfig(hardware=HARDWARE))
    assert OffloadConfig().stated_hardware is None


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        ("H100", "hardware='H100' does not describe hardware .*; pass a fxoffload.Hardware"),
        ({"flops_per_second": 1}, "missing .* required keyword-only arguments"),
        ({**HARDWARE, "flops": 1}, "unexpected keyword argument 'flops'"),
        ({**HARDWARE, "memory_bytes": "lots"}, "hardware=.*memory_bytes='lots' is not a size"),
    ],
)
def test_bad_hardware(hardware: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OffloadConfig(hardware=hardware)


def test_mode_and_options_of_inductor() -> None:
    config = OffloadConfig(
        mode="max-autotune", inductor={"max-autotune": False, "triton.cudagraphs": False}
    )
    assert config.inductor == (("max_autotune", False), ("triton.cudagraphs", False))
    assert config.inductor_options == {
        "coordinate_descent_tuning": True, "max_autotune": False, "triton.cudagraphs": False
    }  # fmt: skip
    assert OffloadConfig().inductor_options == OffloadConfig(mode="default").inductor_options == {}
    assert dataclasses.replace(config, min_bytes=1).inductor == config.inductor


def test_options_of_inductor_in_any_order_are_equal() -> None:
    left = OffloadConfig(inductor={"shape_padding": False, "precompilation_timeout_seconds": 9})
    right = OffloadConfig(inductor={"precompilation_timeout_seconds": 9, "shape_padding": False})
    assert left == right
    assert hash(left) == hash(right)
    assert left.key == right.key


def test_a_list_as_an_option_of_inductor() -> None:
    config = OffloadConfig(inductor={"autotune_num_choices_displayed": None, "cpp.cxx": (None,)})
    assert isinstance(hash(config), int)
    assert isinstance(hash(OffloadConfig(inductor={"post_grad_fusion_options": {}})), int)


@pytest.mark.parametrize(
    ("inductor", "words"),
    [
        ({"shape_paddin": True}, "'shape_paddin'.* unknown to Inductor; .*'shape_padding'"),
        ({"shape_padding": 3}, "'shape_padding': 3} has the wrong type; pass bool"),
        ({"custom_partitioner_fn": None}, "'custom_partitioner_fn'.* sets itself; leave it out"),
        ({"layout-optimization": True}, "'layout_optimization'.* sets itself"),
        ("shape_padding", "inductor='shape_padding' is not a mapping"),
        (3, "inductor=3 is not a mapping"),
    ],
)
def test_bad_options_of_inductor(inductor: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OffloadConfig(inductor=inductor)


@pytest.mark.parametrize("options", [{"mode": "default"}, {"inductor": {"shape_padding": True}}])
def test_options_of_inductor_need_inductor(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r'is for Inductor.* or pass compiler="inductor"'):
        OffloadConfig(compiler="eager", **options)


# --- options ------------------------------------------------------------------------------------


def test_options_are_fields() -> None:
    options = {"directory": "/data", "memory_budget": "min", "enabled": False}
    assert OffloadConfig.from_options(options) == OffloadConfig(**options)
    assert OffloadConfig.from_options(None) == OffloadConfig()


def test_the_mode_of_torch_compile_is_an_option() -> None:
    config = OffloadConfig(mode="max-autotune")
    assert OffloadConfig.from_options(None, mode="max-autotune") == config
    assert OffloadConfig.from_options({"mode": "max-autotune"}, mode="max-autotune") == config
    with pytest.raises(ConfigError, match="mode='default' and the option mode='max-autotune' diff"):
        OffloadConfig.from_options({"mode": "max-autotune"}, mode="default")


@pytest.mark.parametrize(
    ("name", "near"), [("memory_buget", "memory_budget"), ("dir", "directory"), ("xyz", None)]
)
def test_unknown_option(name: str, near: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        OffloadConfig.from_options({name: 1})
    message = str(caught.value)
    assert message.startswith(f"unknown option {name!r}; ")
    assert (f"did you mean {near!r}?" in message) is (near is not None)
    for field in dataclasses.fields(OffloadConfig):
        assert repr(field.name) in message


# --- directories --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [str, Path])
def test_one_directory(make: type) -> None:
    assert OffloadConfig(directory=make("/data/spill")).directories == (Path("/data/spill"),)


def test_several_directories() -> None:
    config = OffloadConfig(directory=["/a", Path("/b")])
    assert config.directories == (Path("/a"), Path("/b"))


# --- keys ---------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "directory": "/b",
    "memory_budget": "8GiB",
    "device_memory": "90%",
    "host_budget": "1GiB",
    "min_bytes": 1,
    "max_inflight_bytes": 1,
    "ioengine": "posix",
    "checksum": True,
    "endurance": "600TBW",
    "hardware": HARDWARE,
    "compiler": "eager",
    "mode": "max-autotune",
    "inductor": {"shape_padding": False},
    "enabled": False,
}


def test_equal_options_have_one_key() -> None:
    left = OffloadConfig(directory="/a", memory_budget="1MiB")
    right = OffloadConfig(directory=[Path("/a")], memory_budget=2**20)
    assert left == right
    assert hash(left) == hash(right)
    assert left.key == right.key


def test_an_object_as_an_option_of_inductor_has_one_key() -> None:
    class Pass:
        def __call__(self, graph: object) -> None: ...

    options = {"post_grad_custom_pre_pass": Pass()}
    config = OffloadConfig(directory="/a", inductor=options)
    assert config.key == config.key == OffloadConfig(directory="/a", inductor=options).key


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(OffloadConfig)])
def test_every_field_is_in_the_key(field: str) -> None:
    config = OffloadConfig(directory="/a")
    assert dataclasses.replace(config, **{field: CHANGES[field]}).key != config.key


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(OffloadConfig)])
def test_configurations_share_a_store(field: str) -> None:
    """But for what it is made of: else each budget would open files and threads of its own."""
    config = OffloadConfig(directory="/a")
    other = dataclasses.replace(config, **{field: CHANGES[field]})
    made_of = ("directory", "ioengine", "host_budget", "max_inflight_bytes", "checksum", "enabled")
    assert (other.store_key == config.store_key) == (field not in made_of)


def test_default_directory_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, "/data/one")
    one = OffloadConfig().key
    monkeypatch.setenv(DIRECTORY_VARIABLE, "/data/two")
    assert OffloadConfig().key != one


@pytest.mark.parametrize("options", [{"ioengine": "memory"}, {"enabled": False}])
def test_without_a_disk_no_directory_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def refuse() -> Path:
        raise ConfigError("no directory for the spill file")

    monkeypatch.setattr(config_module, "default_directory", refuse)
    assert OffloadConfig(**options).key == OffloadConfig(**options).key
    with pytest.raises(ConfigError, match="no directory"):
        _ = OffloadConfig().key

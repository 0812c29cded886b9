"""The user's options: one frozen record, validated when it is constructed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fxoffload import torch_internals
from fxoffload.directories import default_directory, normalise_directories, read_directories
from fxoffload.environment import name_variable, read_options
from fxoffload.errors import ConfigError
from fxoffload.hardware import Hardware
from fxoffload.hints import find_hint
from fxoffload.sizes import parse_bytes, parse_endurance, parse_share

IOEngineName = Literal["auto", "posix", "kvikio", "gds", "memory"]
CompilerName = Literal["inductor", "eager"]

_STORE_OPTIONS = ("ioengine", "host_budget", "max_inflight_bytes", "checksum")


@dataclass(frozen=True)
class OffloadConfig:
    """The options of `torch.compile(backend="fxoffload")`, one field for each.

    directory: one directory or several (striped) on real disks. Default: those of
        `$FXOFFLOAD_DIRECTORY`, else a per-user one on a disk. Not used with `ioengine="memory"`.
    memory_budget: None moves the values whose transfers hide behind compute (they take at most 2 %
        of the step); bytes (int or "8GiB") are the activation peak of the whole step to fit; "min"
        moves everything that may move.
    device_memory: bytes (int or "22GiB") or a share ("90%") of the memory of the device that
        everything on it together may take: parameters, gradients, states of optimizers, what other
        programs hold, and activations, which get the rest, less 2 % for fragmentation. On a CPU it
        is what this process has from malloc; a share is one of the machine's or cgroup's memory.
    host_budget: bytes of host memory for the host tier (int or "4GiB"); 0: no host tier. None: for
        values of a GPU half of the available host memory, divided by the ranks on the machine (none
        with stated `hardware`), for those of a CPU no host tier. With `ioengine="memory"`, the cap
        on the host memory that is used in place of a disk; None: half of the memory of the machine,
        or of what the process's cgroup allows.
    min_bytes: storages smaller than this are not moved.
    max_inflight_bytes: cap on bytes being written, and on bytes being read ahead; at the cap an
        offload waits. On a GPU, values on their way to a disk take as much pinned host memory; on a
        CPU they take none beside themselves. A cap of few values leaves the drives idle. None is
        4 GiB, or as much as three of the largest values where that is more.
    ioengine: "posix" (threads), "kvikio" (the library KvikIO; needs a CUDA driver), "gds" (KvikIO
        with GPUDirect Storage: values of a GPU move without host memory in between), "memory" (no
        disk), or "auto": "kvikio" if it can be used and a probe finds it faster, else "posix".
    checksum: True computes a digest of everything that is written to the disk tier, and compares
        it with a digest of what is read back; needs the package xxhash (extra "checksum").
    endurance: the total bytes that all directories' drives together may be written in their life
        ("600TBW", "1.2PBW" or bytes); `fxoffload.drive_lifetimes()` projects how long it lasts.
    hardware: a Hardware, or its fields by name, whose speeds of compute and transfers stand in
        place of those measured on this machine and in the run. Without a limit on memory, the same
        step then has the same plan every time; a limit is kept by what memory is seen to hold.
    compiler: "inductor", or "eager" to run the transformed graphs without Inductor.
    mode: a mode of torch.compile, for Inductor: "max-autotune", "reduce-overhead", ...
    inductor: options of Inductor, such as {"shape_padding": False}; they override those of `mode`.
        Options that fxoffload sets are refused (see torch_internals.compile_with_inductor).
    enabled: False saves the same values and moves nothing (the parity reference).

    Raises ConfigError for values that cannot work, before anything is compiled.
    """

    directory: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    memory_budget: int | str | None = None
    device_memory: int | str | float | None = None
    host_budget: int | str | None = None
    min_bytes: int | str = 2**20
    max_inflight_bytes: int | str | None = None
    ioengine: IOEngineName = "auto"
    checksum: bool = False
    endurance: int | str | None = None
    hardware: Hardware | Mapping[str, Any] | None = None
    compiler: CompilerName = "inductor"
    mode: str | None = None
    # Not hashed, as values of Inductor's options may be lists.
    inductor: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = field(
        default=None, hash=False
    )
    enabled: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", normalise_directories(self.directory))
        if self.memory_budget != "min":
            self._set_bytes("memory_budget", optional=True, extra=', "min"')
        if self.device_memory is not None and not isinstance(self.device_memory, float):
            limit = parse_share("device_memory", self.device_memory)
            object.__setattr__(self, "device_memory", limit)
        self._set_bytes("host_budget", optional=True)
        self._set_bytes("min_bytes")
        self._set_bytes("max_inflight_bytes", optional=True)
        _check_choice("ioengine", self.ioengine, get_args(IOEngineName))
        _check_choice("compiler", self.compiler, get_args(CompilerName))
        if self.hardware is not None:
            object.__setattr__(self, "hardware", _normalise_hardware(self.hardware))
        self._check_inductor()
        if self.endurance is not None:
            object.__setattr__(self, "endurance", parse_endurance("endurance", self.endurance))
        for name in ("checksum", "enabled"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} is not a bool; pass True or False")
        if self.max_inflight_bytes == 0:
            raise ConfigError("max_inflight_bytes=0 allows no transfer; pass at least 1")

    def _set_bytes(self, field: str, *, optional: bool = False, extra: str = "") -> None:
        value = getattr(self, field)
        if value is None and optional:
            return
        object.__setattr__(self, field, parse_bytes(field, value, extra=extra))

    def _check_inductor(self) -> None:
        if self.mode is not None:
            _check_choice("mode", self.mode, torch_internals.list_inductor_modes())
        if self.inductor is not None:
            object.__setattr__(self, "inductor", _normalise_inductor(self.inductor))
        for name in ("mode", "inductor"):
            value = getattr(self, name)
            if value is not None and self.compiler != "inductor":
                raise ConfigError(
                    f"{name}={value!r} is for Inductor, which compiler={self.compiler!r} does not "
                    f'use; leave {name} out, or pass compiler="inductor"'
                )

    @property
    def directories(self) -> tuple[Path, ...]:
        """The spill directories; those of the environment or the default if the code named none."""
        if self.directory is None:
            return read_directories() or (default_directory(),)
        assert isinstance(self.directory, tuple)
        return tuple(Path(path) for path in self.directory)

    @property
    def budget_bytes(self) -> int | None:
        """The activation peak to fit in bytes; None when there is no budget or it is "min"."""
        return self.memory_budget if isinstance(self.memory_budget, int) else None

    @property
    def is_limited(self) -> bool:
        """Whether the memory of a step has a limit."""
        return self.memory_budget is not None or self.device_memory is not None

    @property
    def host_bytes(self) -> int | None:
        """`host_budget` in bytes, None when not given (see machine.find_host_bytes)."""
        return self.host_budget if isinstance(self.host_budget, int) else None

    @property
    def min_storage_bytes(self) -> int:
        """`min_bytes` in bytes."""
        assert isinstance(self.min_bytes, int)
        return self.min_bytes

    @property
    def inflight_bytes(self) -> int | None:
        """`max_inflight_bytes` in bytes, None for the default: see find_inflight_cap."""
        assert not isinstance(self.max_inflight_bytes, str)
        return self.max_inflight_bytes

    @property
    def endurance_bytes(self) -> int | None:
        """`endurance` in bytes, None when not given."""
        assert not isinstance(self.endurance, str)
        return self.endurance

    @property
    def stated_hardware(self) -> Hardware | None:
        """`hardware`, None when not given."""
        assert not isinstance(self.hardware, Mapping)
        return self.hardware

    @property
    def inductor_options(self) -> dict[str, Any]:
        """The options of Inductor that `mode` and `inductor` set, by name."""
        options = torch_internals.list_inductor_modes()[self.mode] if self.mode else {}
        return {**options, **dict(self.inductor or ())}

    @property
    def needs_disk(self) -> bool:
        """Whether the store may write to `directories`."""
        return self.enabled and self.ioengine != "memory"

    @property
    def key(self) -> str:
        """A digest of all options, the same in every process.

        An object among Inductor's options is represented by its repr.
        """
        return self._digest([field.name for field in dataclasses.fields(self)])

    @property
    def store_key(self) -> str:
        """A digest of the options of a store: configurations with equal ones share one store."""
        return self._digest(_STORE_OPTIONS)

    def _digest(self, names: Iterable[str]) -> str:
        directories = self.directories if self.needs_disk else ()
        # Not by dataclasses.astuple, which copies objects: the default repr of a copy differs.
        values = [getattr(self, name) for name in names]
        text = repr(values) + repr([str(path) for path in directories])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any] | None, *, mode: str | None = None
    ) -> OffloadConfig:
        """Build from the arguments of `torch.compile(options=..., mode=...)`.

        What they leave out is taken from environment variables: see fxoffload/environment.py.
        Raises ConfigError naming an unknown option or variable, or if `options` name another mode.
        """
        valid = [field.name for field in dataclasses.fields(cls)]
        options = dict(options or {})
        for name in options:
            if name not in valid:
                hint = find_hint(name, valid)
                raise ConfigError(f"unknown option {name!r}; {hint}valid options: {valid}")
        if mode is not None and options.setdefault("mode", mode) != mode:
            raise ConfigError(
                f"mode={mode!r} and the option mode={options['mode']!r} differ; pass one of them"
            )
        defaults = read_options(valid)
        try:
            return cls(**{**defaults, **options})
        except ConfigError as error:
            used = [name for name in defaults if name not in options]
            raise _name_variables(error, used) from None


def _name_variables(error: ConfigError, names: Iterable[str]) -> ConfigError:
    """`error`, with the variables of the options that it names. names: options from variables."""
    about = [name_variable(name) for name in names if re.search(rf"\b{name}=", str(error))]
    return ConfigError(f"{error}; set by {', '.join(about)}") if about else error


def _normalise_hardware(value: Any) -> Hardware:
    """A Hardware, from a mapping of its fields or as it is."""
    if isinstance(value, Hardware):
        return value
    try:
        return Hardware(**value)
    except TypeError as error:
        raise ConfigError(
            f"hardware={value!r} does not describe hardware ({error}); pass a fxoffload.Hardware, "
            "or its fields by name"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"hardware={value!r}: {error}") from None


def _normalise_inductor(value: Any) -> tuple[tuple[str, Any], ...]:
    """Sorted pairs of name and value, checked like torch.compile checks options of Inductor."""
    try:
        given: dict[Any, Any] = dict(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"inductor={value!r} is not a mapping; pass names and values of Inductor's options"
        ) from None
    types = torch_internals.list_inductor_options()
    options: dict[str, Any] = {}
    for given_name, option in given.items():
        name = str(given_name).replace("-", "_")
        if name not in types:
            raise ConfigError(
                f"inductor={{{name!r}: ...}} is unknown to Inductor; {find_hint(name, types)}"
                "torch._inductor.list_options() names all"
            )
        if name in torch_internals.SET_OPTIONS:
            raise ConfigError(
                f"inductor={{{name!r}: ...}} is what fxoffload sets itself; leave it out"
            )
        if not isinstance(option, types[name]):
            raise ConfigError(
                f"inductor={{{name!r}: {option!r}}} has the wrong type; pass {types[name].__name__}"
            )
        options[name] = option
    return tuple(sorted(options.items()))


def _check_choice(field: str, value: str, valid: Collection[str]) -> None:
    if value not in valid:
        hint = find_hint(str(value), valid)
        raise ConfigError(f"{field}={value!r} is unknown; {hint}valid values: {list(valid)}")

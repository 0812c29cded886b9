"""The user's options: one frozen record, validated when it is built."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fxoffload import torch_internals
from fxoffload.directories import default_directory, normalise_directories
from fxoffload.errors import ConfigError
from fxoffload.sizes import parse_bytes, parse_endurance

IOEngineName = Literal["auto", "posix", "kvikio", "memory"]
CompilerName = Literal["inductor", "eager"]

_STORE_OPTIONS = ("ioengine", "host_budget", "max_inflight_bytes", "checksum")


@dataclass(frozen=True)
class OffloadConfig:
    """What a user may choose; every field is an option of `torch.compile(backend="fxoffload")`.

    directory: one directory or several (striped) on real disks. Default: `$FXOFFLOAD_DIR`, else a
        per-user directory on a disk. Not used with `ioengine="memory"`.
    memory_budget: None moves what hides behind compute (transfers take at most 2 % of the step);
        bytes (int or "8GiB") is the activation peak to fit; "min" moves everything that may move.
    host_budget: bytes of host memory for the host tier (int or "4GiB"); None is no host tier.
        With `ioengine="memory"` it caps the host memory that stands in for the disk; without it
        that is half of what the machine has, or the process's cgroup allows.
    min_bytes: smaller storages stay where they are.
    max_inflight_bytes: cap on bytes being written; at the cap an offload waits.
    ioengine: "posix" (threads), "kvikio" (the library KvikIO; needs a CUDA driver), "memory" (no
        disk), or "auto": "kvikio" where it can be used and a probe finds it faster, else "posix".
    checksum: True takes a digest of what is written to the disk tier and compares it with that of
        what comes back; needs the package xxhash (extra "checksum").
    endurance: what the drives may take in writes in their life ("600TBW", "1.2PBW" or bytes), of
        all directories together; `fxoffload.drive_lifetimes()` projects how long that lasts.
    replan: True measures the first steps on a CPU, keeps what was measured on disk, and compiles
        once more where a plan by it is predicted to pay; False plans by the roofline alone, so
        that a plan follows from graph and machine.
    compiler: "inductor", or "eager" to run the transformed graphs without Inductor.
    mode: of torch.compile, for Inductor: "max-autotune", "reduce-overhead", ...
    inductor: options of Inductor itself, as {"shape_padding": False}; they go over those of `mode`.
        Not those that fxoffload sets (see torch_internals.compile_with_inductor).
    enabled: False compiles the same saved values and moves nothing (the parity reference).

    Raises ConfigError for values that cannot work, before anything is compiled.
    """

    directory: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    memory_budget: int | str | None = None
    host_budget: int | str | None = None
    min_bytes: int | str = 2**20
    max_inflight_bytes: int | str = 2**30
    ioengine: IOEngineName = "auto"
    checksum: bool = False
    endurance: int | str | None = None
    replan: bool = True
    compiler: CompilerName = "inductor"
    mode: str | None = None
    # Values of Inductor's options may be lists.
    inductor: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = field(
        default=None, hash=False
    )
    enabled: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", normalise_directories(self.directory))
        if self.memory_budget != "min":
            self._set_bytes("memory_budget", optional=True, extra=', "min"')
        self._set_bytes("host_budget", optional=True)
        self._set_bytes("min_bytes")
        self._set_bytes("max_inflight_bytes")
        _check_choice("ioengine", self.ioengine, get_args(IOEngineName))
        _check_choice("compiler", self.compiler, get_args(CompilerName))
        self._check_inductor()
        if self.endurance is not None:
            object.__setattr__(self, "endurance", parse_endurance("endurance", self.endurance))
        for name in ("checksum", "replan", "enabled"):
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
        """The spill directories; chosen now when the user named none."""
        if self.directory is None:
            return (default_directory(),)
        assert isinstance(self.directory, tuple)
        return tuple(Path(path) for path in self.directory)

    @property
    def budget_bytes(self) -> int | None:
        """The activation peak to fit in bytes; None when there is no budget or it is "min"."""
        return self.memory_budget if isinstance(self.memory_budget, int) else None

    @property
    def host_bytes(self) -> int | None:
        """`host_budget` in bytes, None when not given."""
        return self.host_budget if isinstance(self.host_budget, int) else None

    @property
    def min_storage_bytes(self) -> int:
        """`min_bytes` in bytes."""
        assert isinstance(self.min_bytes, int)
        return self.min_bytes

    @property
    def inflight_bytes(self) -> int:
        """`max_inflight_bytes` in bytes."""
        assert isinstance(self.max_inflight_bytes, int)
        return self.max_inflight_bytes

    @property
    def endurance_bytes(self) -> int | None:
        """`endurance` in bytes, None when not given."""
        assert not isinstance(self.endurance, str)
        return self.endurance

    @property
    def inductor_options(self) -> dict[str, Any]:
        """What `mode` and `inductor` change of Inductor's configuration, by name."""
        options = torch_internals.list_inductor_modes()[self.mode] if self.mode else {}
        return {**options, **dict(self.inductor or ())}

    @property
    def needs_disk(self) -> bool:
        """Whether anything can be written to `directories`."""
        return self.enabled and self.ioengine != "memory"

    @property
    def key(self) -> str:
        """A digest of all options, the same in every process.

        An object among Inductor's options counts by its repr.
        """
        return self._digest([field.name for field in dataclasses.fields(self)])

    @property
    def store_key(self) -> str:
        """A digest of what a store is made of: configurations that differ elsewhere share one."""
        return self._digest(_STORE_OPTIONS)

    def _digest(self, names: Iterable[str]) -> str:
        directories = self.directories if self.needs_disk else ()
        # astuple would copy an object among the options, and by its usual repr that is another one.
        values = [getattr(self, name) for name in names]
        text = repr(values) + repr([str(path) for path in directories])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any] | None, *, mode: str | None = None
    ) -> OffloadConfig:
        """Build from `torch.compile(options=..., mode=...)`.

        Raises ConfigError naming an unknown option, or where `options` have another mode.
        """
        valid = [field.name for field in dataclasses.fields(cls)]
        options = dict(options or {})
        for name in options:
            if name not in valid:
                hint = _find_hint(name, valid)
                raise ConfigError(f"unknown option {name!r}; {hint}valid options: {valid}")
        if mode is not None and options.setdefault("mode", mode) != mode:
            raise ConfigError(
                f"mode={mode!r} and the option mode={options['mode']!r} differ; pass one of them"
            )
        return cls(**options)


def _normalise_inductor(value: Any) -> tuple[tuple[str, Any], ...]:
    """Pairs of name and value, checked as torch.compile checks the options of Inductor."""
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
                f"inductor={{{name!r}: ...}} is unknown to Inductor; {_find_hint(name, types)}"
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
        hint = _find_hint(str(value), valid)
        raise ConfigError(f"{field}={value!r} is unknown; {hint}valid values: {list(valid)}")


def _find_hint(name: str, valid: Collection[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""

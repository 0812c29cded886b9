"""Compile a model, or some of its modules, in place: class, names and state dict stay."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from fxoffload.backend import BoundBackend, open_store
from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.hints import find_hint
from fxoffload.step_begin import begin_with_forwards

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def compile_in_place(
    model: nn.Module,
    modules: str | None = None,
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    **options: object,
) -> tuple[nn.Module, ...]:
    """Compile `model` in place, or those of its modules that `modules` names; returns them.

    modules: the path of a module ("decoder"); the path of a ModuleList, ModuleDict or Sequential
    ("decoder.layers"), of which each item is compiled by itself; or the name of a class, of which
    each outermost instance is. None: the whole model.
    dynamic, fullgraph: as in torch.compile. mode, options: fields of OffloadConfig.

    A step begins with a forward of `model`: a budget holds for what runs uncompiled in front of the
    compiled parts, too.
    Wrappers such as DistributedDataParallel may be applied before or after, as hooks and the class
    of a module stay.
    Warns of a model of Hugging Face that makes a cache for generation.
    Raises ConfigError for an option or a directory that cannot work, for a name that nothing has,
    and for a module of torch.nn, which torch would run without compiling it.
    """
    config = OffloadConfig.from_options(options, mode=mode)
    found = (model,) if modules is None else _find_modules(model, modules)
    for module in found:
        _check_class(module)
    _warn_of_cache(model)
    open_store(config)
    for module in found:
        module.compile(backend=BoundBackend(config), dynamic=dynamic, fullgraph=fullgraph)
    begin_with_forwards(model)
    return found


def _find_modules(model: nn.Module, name: str) -> tuple[nn.Module, ...]:
    by_path = dict(model.named_modules(remove_duplicate=False))
    if name in by_path:
        module = by_path[name]
        found = tuple(module.children()) if isinstance(module, _CONTAINERS) else (module,)
    else:
        found = tuple(_find_outermost(model, name))
    if found:
        return found
    classes = {type(module).__name__ for module in by_path.values()}
    raise ConfigError(
        f"modules={name!r} names no module of {type(model).__name__}, and no class of one; "
        f"{find_hint(name, [*filter(None, by_path), *classes])}"
        "print the model for its modules"
    )


def _find_outermost(module: nn.Module, class_name: str) -> Iterable[nn.Module]:
    """Instances of the class below `module`, without those that are within another one."""
    if type(module).__name__ == class_name:
        yield module
        return
    for child in module.children():
        yield from _find_outermost(child, class_name)


def _warn_of_cache(model: nn.Module) -> None:
    """Warn if `model` makes a cache for generation in each forward, as Hugging Face's models do.

    Dynamo guards on the state of the cache, which differs from layer to layer.
    """
    if getattr(getattr(model, "config", None), "use_cache", False):
        warnings.warn(
            f"use_cache is on in the config of {type(model).__name__}: torch then compiles each "
            "layer by itself, and runs those beyond its limit of recompilations without "
            "compiling them; set model.config.use_cache = False, as training needs no cache",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_class(module: nn.Module) -> None:
    """Raise ConfigError for a class whose forward is torch's own: Dynamo skips torch's files."""
    kind = type(module)
    if kind.forward.__module__.startswith("torch.nn."):
        raise ConfigError(
            f"torch does not compile {kind.__name__} in place, as its forward is torch's own; name "
            "its items or a module with a forward of its own, or use what "
            "fxoffload.compile(module) returns"
        )

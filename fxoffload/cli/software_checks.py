"""Checks of versions, of the C++ compiler, of CUDA and of KvikIO."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

import torch

from fxoffload.cli.findings import Finding
from fxoffload.runtime.engines.gds_engine import find_gds_obstacle
from fxoffload.runtime.engines.kvikio_engine import DRIVER_LIBRARY, find_obstacle

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 11)
_KVIKIO = ("kvikio-cu13", "kvikio-cu12")


def check_software() -> Iterator[Finding]:
    """All checks of this module."""
    has_gpu = torch.cuda.is_available()
    yield check_python(sys.version_info[:2])
    yield check_torch(torch.__version__)
    yield Finding("fxoffload", "ok", find_version("fxoffload") or "not installed as a package")
    yield check_triton(find_version("triton"), has_gpu=has_gpu)
    yield check_compiler(find_compiler())
    yield check_cuda()
    yield check_kvikio(has_gpu=has_gpu)


def find_version(distribution: str) -> str | None:
    """The installed version of `distribution`; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether Python is new enough."""
    if version < LEAST_PYTHON:
        return Finding("python", "problem", platform.python_version(), "install Python 3.11")
    return Finding("python", "ok", platform.python_version())


def check_torch(version: str) -> Finding:
    """Whether torch is new enough."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < LEAST_TORCH:
        return Finding("torch", "problem", version, 'pip install "torch>=2.11"')
    return Finding("torch", "ok", version)


def check_triton(version: str | None, *, has_gpu: bool) -> Finding:
    """Whether Inductor can compile for a GPU, which needs Triton."""
    if version is not None:
        return Finding("triton", "ok", version)
    if has_gpu:
        return Finding(
            "triton", "problem", "not installed; Inductor needs it for a GPU", "pip install triton"
        )
    return Finding("triton", "ok", "not installed, and not needed without a GPU")


def find_compiler() -> str:
    """The command by which Inductor calls the C++ compiler."""
    return os.environ.get("CXX") or "g++"


def check_compiler(command: str) -> Finding:
    """Whether the C++ compiler that Inductor calls is there. command: its name or path."""
    path = shutil.which(command)
    if path is None:
        return Finding(
            "C++ compiler",
            "problem",
            f"{command!r} is not found; Inductor compiles with it",
            "install g++ (apt-get install g++), or set CXX to another compiler",
        )
    run = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if run.returncode != 0 or not run.stdout:
        return Finding(
            "C++ compiler", "problem", f"{path} --version fails", "install it again, or set CXX"
        )
    return Finding("C++ compiler", "ok", f"{run.stdout.splitlines()[0]} ({path})")


def check_cuda() -> Finding:
    """The driver and the devices of CUDA; a machine without any trains on its CPU."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("CUDA", "ok", f"{', '.join(names)}; torch is built for {torch.version.cuda}")
    has_driver = _has_library(DRIVER_LIBRARY)
    if torch.version.cuda is None:
        fact = "none: torch is built without it, so that models train on the CPU"
        if has_driver:
            return Finding("CUDA", "warning", fact, "install a torch for CUDA to use the GPU")
        return Finding("CUDA", "ok", fact)
    remedy = "restart after an update of the driver; check nvidia-smi"
    if not has_driver:
        remedy = "install the NVIDIA driver to train on a GPU"
    fact = f"torch is built for {torch.version.cuda}, and finds no device"
    return Finding("CUDA", "warning", fact, remedy)


def check_kvikio(*, has_gpu: bool) -> Finding:
    """Whether KvikIO can be used. It is optional: `ioengine="auto"` takes posix without it."""
    versions = [f"{name} {version}" for name in _KVIKIO if (version := find_version(name))]
    obstacle = find_obstacle()
    if obstacle is None:
        lacking = find_gds_obstacle()
        gds = lacking.fact if lacking else 'GPUDirect Storage can be used (ioengine "gds")'
        return Finding("KvikIO", "ok", f"{', '.join(versions)}; {gds}")
    fact = f"cannot be used: {obstacle.fact}; ioengine posix moves the bytes"
    if has_gpu:
        return Finding("KvikIO", "warning", fact, obstacle.remedy)
    return Finding("KvikIO", "ok", fact)


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True

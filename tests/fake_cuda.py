"""Fake driver libraries: with that of CUDA KvikIO moves host memory, with cuFile's device memory.

Device memory is host memory here.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.c")
LIBRARY = "libcuda.so.1"


def has_driver() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def environment_with_driver(folder: Path) -> dict[str, str]:
    """The environment for a process that finds a driver; one is built in `folder` if needed."""
    if has_driver():
        return dict(os.environ)
    build(SOURCE, folder / LIBRARY)
    return find_libraries_in(folder)


def environment_with_gds(folder: Path) -> dict[str, str]:
    """The environment for a process that finds GPUDirect Storage; it is built in `folder`."""
    build(SOURCE, folder / LIBRARY, "-DWITH_STREAMS")
    build(SOURCE.with_name("fake_cufile.c"), folder / "libcufile.so.0")
    (folder / "cufile.json").write_text("{}")
    return {**find_libraries_in(folder), "CUFILE_ENV_PATH_JSON": str(folder / "cufile.json")}


def build(source: Path, target: Path, *options: str) -> None:
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *options, "-shared", "-fPIC", "-o", target, source], check=True)


def find_libraries_in(folder: Path) -> dict[str, str]:
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}

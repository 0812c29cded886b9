"""A fake CUDA driver library: with one that can be loaded, KvikIO moves host memory."""

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
    environment = dict(os.environ)
    if not has_driver():
        compiler = os.environ.get("CC", "cc")
        target = folder / LIBRARY
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, SOURCE], check=True)
        paths = [str(folder), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    return environment

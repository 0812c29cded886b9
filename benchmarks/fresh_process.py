"""Runs a function in a fresh process, so that its memory, caches and threads are its own.

The child is `python -m benchmarks.fresh_process module:function JSON`, with the arguments by name;
it prints each record that the function yields as a line of JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, ParamSpec, get_args, get_origin, get_type_hints

from fxoffload import OffloadError

# glibc keeps freed blocks in its heap, where they stay resident below any live one: a peak RSS then
# tells more of that than of what is alive. With this every block above 1 MiB goes back to the
# system when it is freed. That takes time, so it is for processes whose steps are not timed.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
# As CUDA's allocator does: what is freed stays for the next step. By itself glibc maps every block
# of 32 MiB and more anew, and the system clears its pages: some code then seems slower than other
# by how often it happens to reuse a buffer. With this no step asks the system for memory.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
_ERROR = "error"

Parameters = ParamSpec("Parameters")
Record = dict[str, Any]
Work = Callable[..., Iterator[Record]]


class ChildFailed(Exception):
    """The child ended without a result; the message is what it said last."""


def run_fresh(
    environment: Mapping[str, str],
    work: Callable[Parameters, Iterator[Record]],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> Iterator[Record]:
    """Yield each record of `work(*args, **kwargs)` as it comes; raises ChildFailed at a failure.

    environment: variables of the child beside those of this process.
    """
    module = work.__module__
    if module == "__main__":  # The child needs the name that it can import.
        module = sys.modules[module].__spec__.name  # pyright: ignore[reportOptionalMemberAccess]
    target, text = f"{module}:{work.__name__}", encode(work, *args, **kwargs)
    command = [sys.executable, "-m", "benchmarks.fresh_process", target, text]
    # The child finds what this process finds, wherever both were started.
    paths = os.pathsep.join(filter(None, sys.path))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if not line.startswith("{"):
                    continue  # Printed by a library.
                record = json.loads(line)
                if _ERROR in record:
                    raise ChildFailed(record[_ERROR])
                yield record
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0:
            errors.seek(0)
            last = "".join(errors.readlines()[-30:])
            raise ChildFailed(f"{work.__name__} ended with status {child.returncode}:\n{last}")


def encode(
    work: Callable[Parameters, Any], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> str:
    """The arguments of `work` by name, as JSON."""
    return json.dumps(inspect.signature(work).bind(*args, **kwargs).arguments, default=asdict)


def call(work: Work, text: str) -> Iterator[Record]:
    """Call `work` with the arguments in `text`, each as the dataclass of its annotation."""
    hints = get_type_hints(work)
    return work(**{name: _decode(hints[name], each) for name, each in json.loads(text).items()})


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _decode(hints[name], each) for name, each in value.items()})  # pyright: ignore[reportCallIssue]
    if get_origin(kind) is list:
        return [_decode(get_args(kind)[0], each) for each in value]
    return value


def main() -> None:
    """In the child: print the records; what fxoffload refuses goes to the parent in words."""
    target, text = sys.argv[1:]
    try:
        for record in call(pkgutil.resolve_name(target), text):
            print(json.dumps(record), flush=True)
    except OffloadError as error:
        print(json.dumps({_ERROR: f"{type(error).__name__}: {error}"}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

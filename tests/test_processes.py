"""Processes that end, fork or share a directory while bytes are moving."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

# Moves values through a store of its own for ever, and looks at each that comes back.
WORK = """
import os, signal, sys
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # Jobs in the background ignore it.
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.store.store import OffloadStore

def open_store(directory):
    engine = PosixEngine([SpillFile(directory)])
    return OffloadStore({"nvme": engine}, max_inflight_bytes=2**28)

def work(store, rounds, say=lambda: None):
    values = [torch.full((300_000 + i,), float(i)) for i in range(8)]
    for _ in range(rounds):
        tickets = [store.offload(value.clone(), "value", "nvme", True) for value in values]
        say()
        for ticket in tickets:
            store.release(ticket, True)
        for ticket, value in zip(tickets, values):
            store.prefetch(ticket)
            y = store.wait(ticket)
            assert torch.equal(y, value)
            store.free(ticket)
"""


def start(script: str, directory: Path, *, before: str = "") -> subprocess.Popen[str]:
    """A process that runs `before`, then imports the package, then runs `script`."""
    text = textwrap.dedent(before) + WORK + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return process.returncode, out, err


def print_all(script: str, directory: Path) -> str:
    """Run `script`, which must succeed; return what it printed."""
    code, out, err = finish(start(script, directory))
    assert code == 0, err
    return out.strip()


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def test_killed_at_any_moment_leaves_nothing(spill_directory: Path) -> None:
    script = """
        import random, signal, time
        from pathlib import Path
        random.seed(0)
        for _ in range(50):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:  # No store and no thread is older than the fork.
                work(open_store(Path(sys.argv[1])), 10**9, lambda: os.write(writer, b"."))
            os.read(reader, 1)  # It moves bytes.
            time.sleep(random.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            os.close(reader), os.close(writer)
            assert os.listdir(sys.argv[1]) == []
        print("done")
        """
    assert print_all(script, spill_directory) == "done"
    assert list(spill_directory.iterdir()) == []


def test_killed_frees_the_space(spill_directory: Path) -> None:
    script = """
        from pathlib import Path
        store = open_store(Path(sys.argv[1]))
        store.reserve(2**28, "nvme")
        work(store, 10**9, lambda: print("moving", flush=True))
        """
    process = start(script, spill_directory)
    assert process.stdout is not None
    assert process.stdout.readline() == "moving\n"
    held = free_bytes(spill_directory)
    process.kill()
    finish(process)
    deadline = time.monotonic() + 20
    while free_bytes(spill_directory) < held + 2**27:
        assert time.monotonic() < deadline, "the space does not come back"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_job_soon(spill_directory: Path, number: signal.Signals) -> None:
    script = """
        from pathlib import Path
        pwrite = os.pwrite
        def crawl(*args):
            import time
            time.sleep(0.05)
            return pwrite(*args)
        os.pwrite = crawl  # Writes are queued when the signal comes.
        work(open_store(Path(sys.argv[1])), 10**9, lambda: print("moving", flush=True))
        """
    process = start(script, spill_directory)
    assert process.stdout is not None
    assert process.stdout.readline() == "moving\n"
    process.send_signal(number)
    code, _, err = finish(process, timeout=30)
    assert code == -number
    if number == signal.SIGINT:
        assert err.strip().endswith("KeyboardInterrupt")
    assert list(spill_directory.iterdir()) == []


def test_exit_with_work_queued_is_clean(spill_directory: Path) -> None:
    # What is registered first runs last.
    before = """
        import atexit
        opened = []
        atexit.register(lambda: print([store.closed for store in opened]))
        """
    script = """
        from fxoffload.config import OffloadConfig
        from fxoffload.runtime import find_store, register_store
        import fxoffload
        key = register_store(OffloadConfig(directory=sys.argv[1], ioengine="posix"))
        opened.append(find_store(key))
        kept = [
            torch.ops.fxoffload.offload(torch.ones(2_000_000), key, "value", "nvme", True, 0)
            for _ in range(20)
        ]
        torch.ops.fxoffload.prefetch(kept[0])
        """
    code, out, err = finish(start(script, spill_directory, before=before))
    assert (code, out, err) == (0, "[True]\n", "")
    assert list(spill_directory.iterdir()) == []


def test_a_fork_while_bytes_move(spill_directory: Path) -> None:
    """As DataLoader workers do: the child leaves the values of its parent alone, and can end."""
    script = """
        from fxoffload.config import OffloadConfig
        from fxoffload.errors import StoreError
        from fxoffload.runtime import register_store, statistics
        import time
        key = register_store(OffloadConfig(directory=sys.argv[1], ioengine="posix"))
        ops = torch.ops.fxoffload
        values = [torch.full((500_000,), float(i)) for i in range(16)]
        tickets = [ops.offload(v.clone(), key, "value", "nvme", True, 0) for v in values]
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    ops.prefetch(tickets[0])
                except StoreError:
                    tickets.clear()  # Frees nothing of the parent's.
                    os._exit(7)
                os._exit(1)
            children.append(child)
        for ticket, value in zip(tickets, values):
            y = ops.wait(ticket, value.shape, value.stride(), value.dtype, value.device)
            assert torch.equal(y, value)
        codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        tickets.clear()
        del ticket
        while statistics().inflight_bytes:  # A write that has begun holds its slot to its end.
            time.sleep(0.01)
        done = statistics()
        print(codes, done.live_bytes, done.write_errors + done.read_errors)
        """
    assert print_all(script, spill_directory) == "{7} 0 0"


def test_a_child_keeps_no_spill_file(spill_directory: Path) -> None:
    """Otherwise closing the store frees no space while a DataLoader worker lives."""
    script = """
        from pathlib import Path
        from fxoffload.config import OffloadConfig
        from fxoffload.runtime import register_store
        def find_spill_files():
            links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists())
            return [link for link in links if link.startswith(sys.argv[1])]
        key = register_store(OffloadConfig(directory=sys.argv[1], ioengine="posix"))
        kept = torch.ops.fxoffload.offload(torch.ones(500_000), key, "value", "nvme", True, 0)
        child = os.fork()
        if child == 0:
            os._exit(len(find_spill_files()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        y = torch.ops.fxoffload.wait(kept, (500_000,), (1,), torch.float32, torch.device("cpu"))
        print(len(find_spill_files()), y.sum().item())
        """
    assert print_all(script, spill_directory) == "1 500000.0"


def test_a_fork_waits_for_the_reads_under_way(spill_directory: Path) -> None:
    """A read by direct I/O into memory that a fork shares may end in the child: open(2)."""
    script = """
        import threading, time
        from fxoffload.config import OffloadConfig
        from fxoffload.runtime import register_store
        reading, forked = [], []
        preadv = os.preadv
        def crawl(*args):
            start = time.monotonic()
            time.sleep(0.2)
            try:
                return preadv(*args)
            finally:
                reading.append((start, time.monotonic()))
        config = OffloadConfig(directory=sys.argv[1], ioengine="posix")
        key = register_store(config)
        ops = torch.ops.fxoffload
        tickets = []
        for number in range(6):
            x = torch.full((500_000,), float(number))
            tickets.append(ops.offload(x, key, "value", "nvme", True, 0))
            ops.release(tickets[-1], x)
        os.preadv = crawl
        def read():
            for ticket in tickets:
                ops.prefetch(ticket)
                time.sleep(0.05)
        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(3):
            time.sleep(0.07)
            child = os.fork()
            if child == 0:
                os._exit(0)
            forked.append(time.monotonic())
            os.waitpid(child, 0)
        thread.join()
        for number, ticket in enumerate(tickets):
            y = ops.wait(ticket, (500_000,), (1,), torch.float32, torch.device("cpu"))
            assert torch.equal(y, torch.full((500_000,), float(number)))
        print(len(reading), sum(start < at < end for start, end in reading for at in forked))
        """
    assert print_all(script, spill_directory) == "6 0"


def test_spawned_workers_have_stores_of_their_own(spill_directory: Path) -> None:
    script = """
        from pathlib import Path
        import subprocess
        store = open_store(Path(sys.argv[1]))
        value = torch.arange(500_000.0)
        ticket = store.offload(value.clone(), "value", "nvme", True)
        code = "import fxoffload; print(fxoffload.statistics().live_bytes)"
        command = [sys.executable, "-c", code]
        other = subprocess.run(command, capture_output=True, text=True, check=True)
        store.prefetch(ticket)
        y = store.wait(ticket)
        assert torch.equal(y, value)
        print(other.stdout.strip())
        """
    assert print_all(script, spill_directory) == "0"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers_that_start_while_a_step_writes(
    spill_directory: Path, method: str
) -> None:
    script = f"""
        import time
        import fxoffload
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset
        pwrite = os.pwrite
        def crawl(*args):
            time.sleep(0.1)
            return pwrite(*args)
        os.pwrite = crawl  # Small values are copied: nobody waits for their writes.
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
        model = nn.Sequential(*layers)
        data = TensorDataset(torch.randn(256, 64))
        options = dict(directory=sys.argv[1], ioengine="posix", compiler="eager")
        options |= dict(min_bytes=1, memory_budget="min")
        def load():
            return iter(DataLoader(data, 128, num_workers=2, multiprocessing_context="{method}"))
        def train(step):
            gradients = []
            for (x,) in load():
                model.zero_grad()
                loss = step(x).sum()
                writing = fxoffload.statistics().inflight_bytes
                (other,) = next(load())  # Two more workers, and they end.
                assert torch.equal(other, data.tensors[0][:128])
                loss.backward()
                gradients += [parameter.grad.clone() for parameter in model.parameters()]
                assert writing > 0 or step is plain
            return gradients
        if __name__ == "__main__":
            plain = fxoffload.compile(model, enabled=False, **options)
            compiled = fxoffload.compile(model, **options)
            expected, found = train(plain), train(compiled)
            assert len(found) == 12
            assert all(map(torch.equal, found, expected))
            deadline = time.monotonic() + 30
            while fxoffload.statistics().inflight_bytes and time.monotonic() < deadline:
                time.sleep(0.01)  # A write that has begun when its value is freed still ends.
            done = fxoffload.statistics()
            assert done.read_bytes + done.forwarded_bytes == done.offloaded_bytes > 0
            print(done.live_bytes, done.inflight_bytes, done.write_errors + done.read_errors)
        """
    assert print_all(script, spill_directory) == "0 0 0"
    assert list(spill_directory.iterdir()) == []


def test_two_jobs_in_one_directory(spill_directory: Path) -> None:
    script = """
        from pathlib import Path
        store = open_store(Path(sys.argv[1]))
        work(store, 30)
        done = store.statistics()
        assert done.offloaded_bytes == 30 * 4 * sum(300_000 + i for i in range(8))
        assert done.live_bytes == done.write_errors == done.read_errors == 0
        """
    jobs = [start(script, spill_directory) for _ in range(2)]
    for job in jobs:
        code, _, err = finish(job)
        assert code == 0, err
    assert list(spill_directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_reach_the_values(spill_directory: Path) -> None:
    script = """
        from pathlib import Path
        engine = PosixEngine([SpillFile(Path(sys.argv[1]))])
        fd = engine._fds[0]
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        path = f"/proc/{os.getpid()}/fd/{fd}"
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            try:
                os.open(path, os.O_RDONLY)
            except PermissionError:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    assert print_all(script, spill_directory) == "7"

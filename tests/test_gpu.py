"""Tests that need a CUDA device; without one they are skipped.

`benchmarks/gpu_suite.py` runs it together with the measurements.
The order of streams alone is tested without a device, in test_cuda.py.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from waiting import wait_for_writes
from zoo import CASES, TanhLayers

import fxoffload
from fxoffload.config import OffloadConfig
from fxoffload.errors import StoreError
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.engines.gds_engine import find_gds_obstacle
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.sizes import MIB

# Before the first product of matrices, which reads it: with it, equal runs give equal bits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*determinis"),
]

CUDA = torch.device("cuda", 0)
NUM_STEPS = 3
SLEEP_CYCLES = 50_000_000  # Some 30 ms.
CASE_NAMES = ("mlp", "attention", "dropout", "views", "tied_head", "conv", "checkpoint",
              "graph_break", "gpt2")  # fmt: skip
EXACT_CASES = {"mlp", "views", "checkpoint", "graph_break"}  # Whose kernels add in one order.


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins and ends with nothing compiled and nothing live."""
    torch._dynamo.reset()
    # By default random ops under a checkpoint draw from generators of their own, and other numbers
    # than where nothing is recomputed.
    monkeypatch.setattr(torch._functorch.config, "graphsafe_rng_functionalization", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    fxoffload.reset_statistics()
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.synchronize()
    assert fxoffload.statistics().live_bytes == 0


def open_store(engine: IOEngine) -> Iterator[OffloadStore]:
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=2**31)
    yield store
    store.close()
    assert store.statistics().live_bytes == 0


@pytest.fixture
def store() -> Iterator[OffloadStore]:
    yield from open_store(MemoryEngine(8 * 2**30))


@pytest.fixture
def direct_store(spill_directory: Path) -> Iterator[OffloadStore]:
    """One whose values need no host memory."""
    obstacle = find_gds_obstacle()
    if obstacle is not None:
        pytest.skip(f"needs GPUDirect Storage: {obstacle.fact}")
    yield from open_store(open_engine(OffloadConfig(directory=spill_directory, ioengine="gds")))


def find_device(store: OffloadStore, device: torch.device = CUDA) -> CudaDevice:
    found = store._devices.find(device)
    assert isinstance(found, CudaDevice)
    return found


# --- compiled models ----------------------------------------------------------------------------


def train(
    case: str, *, mode: str | None = None, steps: int = NUM_STEPS, **options: Any
) -> list[list[Tensor]]:
    """Loss and gradients of some optimizer steps on CUDA, on the host."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, inputs = CASES[case]()
    module.to(CUDA)
    inputs = tuple(x.to(CUDA) for x in inputs)
    # By default everything would stay in host memory.
    options = {"host_budget": 0, "min_bytes": 1, "memory_budget": "min", **options}
    compiled = fxoffload.compile(module, mode=mode, **options)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    history: list[list[Tensor]] = []
    for step in range(steps):
        torch.compiler.cudagraph_mark_step_begin()
        torch.manual_seed(step)
        loss = compiled(*inputs)
        wait_for_writes()
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        history.append([value.detach().cpu() for value in (loss, *gradients)])
        optimizer.step()
        optimizer.zero_grad()
    return history


def are_equal(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) for old, new in pairs for a, b in zip(old, new, strict=True))


def assert_moved_and_freed() -> None:
    done = fxoffload.statistics()
    assert done.offloaded_bytes > 0
    assert done.written_bytes == done.read_bytes == done.offloaded_bytes
    assert done.live_bytes == done.inflight_bytes == done.write_errors == done.read_errors == 0


def check_parity(
    case: str, mode: str | None = None, steps: int = NUM_STEPS, **options: Any
) -> None:
    """Bitwise where the graphs that move nothing repeat themselves bitwise; else close."""
    reference = train(case, enabled=False, steps=steps, **options)
    repeats = are_equal(reference, train(case, enabled=False, steps=steps, **options))
    fxoffload.reset_statistics()
    moved = train(case, mode=mode, steps=steps, **options)
    torch.testing.assert_close(moved, reference, rtol=1e-4, atol=1e-5)
    assert repeats or case not in EXACT_CASES
    if repeats and mode is None:
        assert are_equal(moved, reference)
    assert_moved_and_freed()


@pytest.mark.parametrize("case", CASE_NAMES)
def test_parity_eager(case: str, spill_directory: Path) -> None:
    check_parity(case, compiler="eager", directory=spill_directory)


@pytest.mark.parametrize("case", ["mlp", "attention", "gpt2"])
def test_parity_inductor(case: str, spill_directory: Path) -> None:
    check_parity(case, directory=spill_directory)


def test_parity_kvikio(spill_directory: Path) -> None:
    pytest.importorskip("kvikio")
    check_parity("attention", compiler="eager", directory=spill_directory, ioengine="kvikio")
    assert "kvikio" in fxoffload.statistics().ioengine


def test_parity_by_default_in_host_memory(spill_directory: Path) -> None:
    check_parity("attention", compiler="eager", directory=spill_directory, host_budget=None)
    done = fxoffload.statistics()
    assert done.host_written_bytes == done.host_read_bytes == done.offloaded_bytes
    assert done.host_overflow_bytes == 0


def test_reduce_overhead_is_right_over_many_steps(spill_directory: Path) -> None:
    """CUDA graphs are replayed around our ops, which read and write other addresses each time."""
    from torch._dynamo.utils import counters

    counters.clear()
    check_parity("gpt2", mode="reduce-overhead", steps=10, directory=spill_directory)
    # A graph that Inductor divided has more partitions than there are graphs (two).
    assert counters["inductor"]["cudagraph_partitions"] > 2
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_compute_on_a_stream_of_the_user(spill_directory: Path) -> None:
    reference = train("attention", compiler="eager", directory=spill_directory, enabled=False)
    fxoffload.reset_statistics()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        moved = train("attention", compiler="eager", directory=spill_directory)
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(moved, reference, rtol=1e-4, atol=1e-5)
    assert_moved_and_freed()


def test_retain_graph(spill_directory: Path) -> None:
    model = TanhLayers(4, 256).to(CUDA)
    x = torch.randn(512, 256, device=CUDA)
    options = {"compiler": "eager", "directory": spill_directory, "memory_budget": "min"}
    compiled = fxoffload.compile(model, min_bytes=1, **options)
    loss = compiled(x)
    wait_for_writes()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    loss.backward()
    twice = [p.grad for p in model.parameters()]
    torch.testing.assert_close(twice, [2 * gradient for gradient in once])
    del loss
    assert fxoffload.statistics().read_bytes > 0


@pytest.mark.parametrize("host_budget", [None, 0])
def test_peak_falls_by_what_is_moved(host_budget: int | None, spill_directory: Path) -> None:
    """12 activations of 64 MiB; the moved model holds a few of them at a time."""
    x = torch.randn(8192, 2048, device=CUDA)

    def find_peak(**options: Any) -> int:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = TanhLayers(12, 2048).to(CUDA)
        options = {"memory_budget": "min", "host_budget": host_budget, **options}
        compiled = fxoffload.compile(model, compiler="eager", directory=spill_directory, **options)
        peaks: list[int] = []
        for _ in range(2):
            model.zero_grad()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            compiled(x).backward()
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        return peaks[-1]

    plain = find_peak(enabled=False)
    moved = find_peak()
    assert plain >= 12 * 64 * MIB
    # Gradients (12 x 16 MiB) stay in both.
    assert moved < 0.6 * plain


def read_kernels(code: str) -> list[tuple[list[str], list[int]]]:
    """Of each Triton kernel in generated code: its arguments' types, and which are aligned."""
    found: list[tuple[list[str], list[int]]] = []
    for line in code.splitlines():
        signature = re.search(r"'signature': \{(.*?)\}", line)
        aligned = re.search(r"'configs': \[\{(.*?)\}\]", line)
        if signature and aligned:
            types = re.findall(r"'\w+': '([^']*)'", signature[1])
            found.append((types, [int(i) for i in re.findall(r"\((\d+),\)", aligned[1])]))
    return found


def test_reloaded_values_are_aligned_in_generated_code(spill_directory: Path) -> None:
    from torch._inductor.utils import run_fw_bw_and_get_code

    model = TanhLayers(4, 512).to(CUDA)
    x = torch.randn(512, 512, device=CUDA)
    compiled = fxoffload.compile(model, directory=spill_directory, memory_budget="min", min_bytes=1)
    _, (_, backward) = run_fw_bw_and_get_code(lambda: compiled(x))
    assert backward.count("fxoffload.wait.default.direct(") > 0
    assert re.search(r"assert_alignment\(\w+, 16, .torch.ops.fxoffload.wait", backward)
    assert "fxoffload.wait.default) is assumed to be not aligned" not in backward
    kernels = read_kernels(backward)
    assert kernels
    for types, aligned in kernels:
        pointers = {index for index, kind in enumerate(types) if kind.startswith("*")}
        assert pointers <= set(aligned)


# --- the store ----------------------------------------------------------------------------------


@pytest.mark.parametrize("own_stream", [False, True])
def test_large_values_under_a_slow_stream(store: OffloadStore, own_stream: bool) -> None:
    move_large_values(store, own_stream)


@pytest.mark.parametrize("own_stream", [False, True])
def test_large_values_by_gpudirect_storage(direct_store: OffloadStore, own_stream: bool) -> None:
    move_large_values(direct_store, own_stream)
    assert direct_store.statistics().ioengine == "kvikio gds"
    assert find_device(direct_store).arena.used_bytes == 0


def move_large_values(store: OffloadStore, own_stream: bool) -> None:
    """8192 x 8192: copies take so long that one which is not waited for is caught half done."""
    stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
    shape, count = (8192, 8192), 6
    with torch.cuda.stream(stream):
        for step in range(2):
            tickets = []
            for number in range(count):
                torch.cuda._sleep(SLEEP_CYCLES)
                x = torch.full(shape, float(10 * step + number), device=CUDA)
                ticket = store.offload(x, f"x{number}", "nvme", True)
                store.release(ticket, block=True)
                del x
                # Takes the memory of x at once.
                scratch = torch.full(shape, -1.0, device=CUDA)
                del scratch
                tickets.append(ticket)
            if step:
                wait_for_writes(store.statistics)
            for number in reversed(range(count)):
                ticket = tickets.pop()
                store.prefetch(ticket)
                torch.cuda._sleep(SLEEP_CYCLES)
                y = store.wait(ticket)
                assert y.data_ptr() % 512 == 0
                low, high = (value.item() for value in torch.aminmax(y))
                assert low == high == 10 * step + number
                del y
                store.free(ticket)
    done = store.statistics()
    assert done.read_bytes >= count * 8192 * 8192 * 4
    assert done.read_bytes + done.forwarded_bytes == done.offloaded_bytes


def test_a_value_that_is_given_up_overwrites_nothing(store: OffloadStore) -> None:
    nbytes = 64 * MIB
    for _ in range(20):
        x = torch.ones(nbytes // 4, device=CUDA)
        ticket = store.offload(x, "x", "nvme", True)
        store.release(ticket, block=True)
        del x
        wait_for_writes(store.statistics)
        store.prefetch(ticket)
        store.free(ticket)
        other = torch.full((nbytes // 4,), 2.0, device=CUDA)
        torch.cuda._sleep(SLEEP_CYCLES)
        assert torch.aminmax(other) == (2, 2)


@pytest.mark.parametrize("block", [False, True])
def test_a_released_value_takes_no_memory(store: OffloadStore, block: bool) -> None:
    """Its bytes stay in host memory, and a schedule may never wait for them."""
    before = torch.cuda.memory_allocated()
    x = torch.full((16 * MIB,), 3.0, device=CUDA)
    ticket = store.offload(x, "x", "nvme", True)
    store.release(ticket, block=block)
    del x
    torch.cuda.synchronize()
    find_device(store).let_go()
    assert torch.cuda.memory_allocated() == before
    assert torch.aminmax(store.wait(ticket)) == (3, 3)
    store.free(ticket)


def test_what_another_stream_does_is_in_order(store: OffloadStore) -> None:
    """It settles a value, whose memory is reused, and reads it ahead; the first one waits."""
    other = torch.cuda.Stream()
    for number in range(10):
        torch.cuda._sleep(SLEEP_CYCLES)
        x = torch.full((16 * MIB,), float(number), device=CUDA)
        ticket = store.offload(x, "x", "nvme", True)
        store.release(ticket, block=False)
        del x
        with torch.cuda.stream(other):
            store.settle(ticket)
        scratch = torch.full((16 * MIB,), -1.0, device=CUDA)
        del scratch
        with torch.cuda.stream(other):
            store.prefetch(ticket)
        torch.cuda._sleep(SLEEP_CYCLES)
        y = store.wait(ticket)
        torch.cuda._sleep(SLEEP_CYCLES)
        low, high = torch.aminmax(y)
        del y
        with torch.cuda.stream(other):
            scratch = torch.full((16 * MIB,), -1.0, device=CUDA)
            del scratch
        assert low.item() == high.item() == number
        store.free(ticket)


def test_a_capture_of_a_cuda_graph_is_refused(store: OffloadStore) -> None:
    x, y = torch.ones(MIB, device=CUDA), torch.ones(MIB, device=CUDA)
    ticket = store.offload(x, "x", "nvme", True)
    wait_for_writes(store.statistics)  # No thread calls CUDA during the capture.
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        y.add_(1)  # torch warns of an empty graph.
        with pytest.raises(StoreError, match="CUDA graph"):
            store.offload(x, "x", "nvme", True)
        with pytest.raises(StoreError, match="CUDA graph"):
            store.prefetch(ticket)
    assert torch.equal(store.wait(ticket), x)
    store.free(ticket)


def test_a_steady_step_pins_nothing(store: OffloadStore) -> None:
    def step() -> None:
        tickets = []
        for number in range(4):
            x = torch.full((MIB,), float(number), device=CUDA)
            ticket = store.offload(x, f"x{number}", "nvme", True)
            store.release(ticket, block=True)
            tickets.append(ticket)
        wait_for_writes(store.statistics)
        for number in reversed(range(4)):
            ticket = tickets.pop()
            store.prefetch(ticket)
            y = store.wait(ticket)
            assert torch.aminmax(y) == (number, number)
            store.free(ticket)

    step()
    calls = torch.cuda.host_memory_stats()["num_host_alloc"]
    arena = find_device(store).arena
    assert 0 < arena.pinned_bytes <= 64 * MIB
    for _ in range(10):
        step()
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == calls
    assert arena.pinned_bytes <= 64 * MIB


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices(store: OffloadStore) -> None:
    """Each has streams of its own; the current device of the caller is the other one."""
    values = {}
    for index in (0, 1):
        device = torch.device("cuda", index)
        with torch.cuda.device(1 - index):
            x = torch.full((16 * MIB,), float(index), device=device)
            ticket = store.offload(x, f"x{index}", "nvme", True)
            store.release(ticket, block=True)
            values[device] = ticket
            del x
    wait_for_writes(store.statistics)
    for device, ticket in values.items():
        with torch.cuda.device(1 - device.index):
            store.prefetch(ticket)
            y = store.wait(ticket)
            assert y.device == device
            assert torch.aminmax(y) == (device.index, device.index)
            assert torch.cuda.current_device() == 1 - device.index
        store.free(ticket)
    assert find_device(store, torch.device("cuda", 1)).arena.pinned_bytes > 0

"""The ops on plain tensors, the lifetime of tickets, and the stores of the process."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path

import pytest
import torch
from op_calls import OPS, fetch, live_bytes, offload
from torch import nn
from torch.profiler import ProfilerActivity, profile
from toys import HARDWARE

import fxoffload
from fxoffload.config import OffloadConfig
from fxoffload.errors import StoreError
from fxoffload.runtime import (
    find_store,
    kernels,
    register_store,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("nbytes", [1000, 1_000_000])
def test_a_value_goes_and_comes_back(key: str, nbytes: int) -> None:
    x = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    expected = x.clone()
    ticket = offload(key, x)
    assert (ticket.shape, ticket.dtype, ticket.device) == ((1,), torch.int64, CPU)
    OPS.release(ticket, x)
    x.zero_()
    assert torch.equal(fetch(ticket, expected), expected)


@pytest.mark.parametrize("nbytes", [1000, 1_000_000])
def test_wait_without_prefetch_reads(key: str, nbytes: int) -> None:
    x = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    assert torch.equal(OPS.wait(ticket, x.shape, x.stride(), x.dtype, CPU), x)


def test_a_value_can_come_twice(key: str) -> None:
    x = torch.randn(50_000)
    expected = x.clone()
    ticket = offload(key, x)
    OPS.release(ticket, x)
    fetch(ticket, x).zero_()
    OPS.prefetch(ticket)  # Of a backward that was given up.
    assert torch.equal(fetch(ticket, x), expected)


def test_wait_copies_nothing_for_the_stride_of_a_dimension_of_one(key: str) -> None:
    x = torch.randn(80, 1, 1000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    OPS.prefetch(ticket)
    (prefetched,) = kernels._entries[int(ticket.item())][0].ticket.prefetches
    y = OPS.wait(ticket, x.shape, (1000, 7, 1), x.dtype, CPU)
    assert y.stride() == (1000, 7, 1)
    assert y.data_ptr() == prefetched.arrival.y.data_ptr()
    assert torch.equal(y, x)


@pytest.mark.parametrize("stride", [(1, 300), (200, 1), (0, 1)])
def test_wait_gives_the_strides_that_are_asked_for(key: str, stride: tuple[int, int]) -> None:
    x = torch.randn(1, 200).expand(300, 200)
    if stride[0]:
        x = x.contiguous()
    for value in (x, x.contiguous()):
        ticket = offload(key, value)
        OPS.release(ticket, value)
        OPS.prefetch(ticket)
        y = OPS.wait(ticket, x.shape, stride, x.dtype, CPU)
        assert y.stride() == stride
        assert torch.equal(y, x)


def test_wait_refuses_another_value_than_was_offloaded(key: str) -> None:
    x = torch.randn(50_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    OPS.prefetch(ticket)
    with pytest.raises(StoreError, match="do not belong together"):
        OPS.wait(ticket, (50_001,), (1,), x.dtype, CPU)


def test_the_host_tier(config: OffloadConfig) -> None:
    key = register_store(config)
    x = torch.randn(100_000)
    if config.ioengine == "memory":
        with pytest.raises(StoreError, match="no tier 'host'"):
            offload(key, x, "host")
        return
    ticket = offload(key, x, "host")
    OPS.release(ticket, x)
    assert torch.equal(fetch(ticket, x), x)
    assert find_store(key).statistics().ioengine.endswith(", memory")


def test_the_slot_lives_as_long_as_the_storage_of_the_ticket(key: str) -> None:
    x = torch.zeros(100_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    view = ticket.view(1, 1)
    alias = ticket.detach()
    del ticket
    assert live_bytes(key) == 400_000
    del view
    assert torch.equal(fetch(alias, x), x)
    del alias
    assert live_bytes(key) == 0


def test_numbers_are_never_used_again(key: str) -> None:
    x = torch.zeros(10)
    numbers = [int(offload(key, x)) for _ in range(3)]
    assert numbers == sorted(set(numbers))


def test_more_tickets_than_are_made_at_once(key: str) -> None:
    values = [torch.full((100,), float(number)) for number in range(2 * kernels.BLANKS + 3)]
    tickets = [offload(key, x) for x in values]
    assert len({int(ticket) for ticket in tickets}) == len(values)
    for ticket, x in zip(tickets, values, strict=True):
        assert torch.equal(fetch(ticket, x), x)
    del ticket
    tickets.clear()
    assert live_bytes(key) == 0


def test_a_ticket_in_a_cycle_is_freed_by_the_collector(key: str) -> None:
    x = torch.zeros(100_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    cycle: list[object] = [ticket]
    cycle.append(cycle)
    del ticket, cycle
    assert live_bytes(key) == 400_000
    gc.collect()
    assert live_bytes(key) == 0


def test_the_collector_may_run_anywhere(key: str) -> None:
    """Tickets die in cycles while the store works, at allocations the collector chooses."""
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for size in (1000, 50_000):
            for _ in range(60):
                x = torch.full((size,), 3.0)
                ticket = offload(key, x)
                OPS.release(ticket, x)
                assert torch.equal(fetch(ticket, x), x)
                cycle: list[object] = [ticket]
                cycle.append(cycle)
                del ticket, cycle
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    find_store(key).close()
    assert live_bytes(key) == 0


def test_a_ticket_may_die_in_another_thread(key: str) -> None:
    x = torch.zeros(100_000)
    held = [offload(key, x)]
    OPS.release(held[0], x)
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join(30)
    assert live_bytes(key) == 0


def test_a_copied_ticket_is_told_from_a_live_one(key: str) -> None:
    x = torch.zeros(100_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    copied, number = ticket.clone(), int(ticket)
    del ticket
    for call in (
        lambda: OPS.prefetch(copied),
        lambda: OPS.wait(copied, x.shape, x.stride(), x.dtype, CPU),
        lambda: OPS.release(copied, x),
    ):
        with pytest.raises(StoreError, match=f"ticket {number} was freed.*saved-tensor hook"):
            call()


def test_autograd_decides_how_long_a_ticket_lives(key: str) -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            factor = torch.full_like(x, 2.0)
            ticket = offload(key, factor)
            OPS.release(ticket, factor)
            ctx.save_for_backward(ticket)
            return x * factor

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
            (ticket,) = ctx.saved_tensors
            return grad * fetch(ticket, grad)

    x = torch.randn(100_000, requires_grad=True)
    out = Double.apply(x).sum()
    assert live_bytes(key) == 400_000
    out.backward(retain_graph=True)
    assert live_bytes(key) == 400_000
    out.backward()
    assert live_bytes(key) == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 4.0))
    abandoned = Double.apply(x)
    assert live_bytes(key) == 400_000
    del abandoned
    assert live_bytes(key) == 0


def test_many_threads_bring_one_value_back(key: str) -> None:
    """Each gets a tensor of its own, whoever took the one that was prefetched."""
    x = torch.randn(20_000)
    expected = x.clone()
    ticket = offload(key, x)
    OPS.release(ticket, x)
    found: list[torch.Tensor] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                OPS.prefetch(ticket)
                found.append(OPS.wait(ticket, x.shape, x.stride(), x.dtype, CPU))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len({y.data_ptr() for y in found}) == len(found) == 80
    assert all(torch.equal(y, expected) for y in found)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh().sum()


@pytest.mark.usefixtures("fresh_dynamo", "fresh_programs")
def test_a_profiler_shows_each_op_with_the_name_of_its_value(tmp_path: Path) -> None:
    step = fxoffload.compile(
        Layer(), compiler="eager", ioengine="memory", hardware=HARDWARE, memory_budget="min",
        min_bytes=1,
    )  # fmt: skip
    x = torch.randn(32, 64)
    for _ in range(3):
        step(x).backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(x).backward()
    trace = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    names = [each["name"] for each in events if each.get("cat") == "user_annotation"]
    ours = [name for name in names if name.startswith("fxoffload ")]
    assert ours == [f"fxoffload {kind} tanh" for kind in ("offload", "release", "prefetch", "wait")]


def test_without_a_profiler_no_range_is_made(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(kernels, "_open_range", lambda kind, _: opened.append(kind))
    x = torch.randn(1000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    fetch(ticket, x)
    assert opened == []


def test_the_range_of_an_op_that_fails_ends(key: str) -> None:
    x = torch.randn(1000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    find_store(key).close()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with pytest.raises(StoreError):
            OPS.wait(ticket, x.shape, x.stride(), x.dtype, CPU)
        gc.collect()
        x.sum()
    events = {each.name: each for each in profiler.events()}
    assert events["aten::sum"].cpu_parent is None
    assert "fxoffload wait value" in events


def test_only_forwards_with_gradients_begin_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients they are an evaluation, or the next token of a text."""
    begun: list[bool] = []
    monkeypatch.setattr(kernels._programs, "note_begin", lambda *, declared: begun.append(declared))
    with torch.no_grad():
        kernels.note_forward()
    assert begun == []
    kernels.note_forward()
    kernels.begin_step()
    assert begun == [False, True]

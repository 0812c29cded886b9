"""Steps of a store on a simulated CUDA device, in random orders."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from simulated_device import CPU, DirectEngine, JobEngine, Kernel, World, install
from torch import Tensor

from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.pieces import PIECE_BYTES
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket

VALUES = 4
LENGTH = 300
WHOLE_LENGTH = 384  # Three units of the engine.
# Room for two values: a third one overflows to the other tier.
HOST_BYTES = 2 * 3 * 512


@dataclass
class Run:
    """A store on a simulated device; `seen` has what kernels found in the values that came back.

    length: of the values.
    """

    world: World
    device: CudaDevice
    engine: JobEngine
    store: OffloadStore
    length: int = LENGTH
    seen: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])

    def make(self, number: int) -> Tensor:
        """A value of `number` everywhere, made by a kernel."""
        world = self.world
        # Some have gaps, so that a private copy is made on the device.
        gaps = 1 + number % 2
        device = self.device.streams.device
        x = world.empty_strided((self.length,), (gaps,), dtype=torch.float32, device=device)
        self.launch(partial(world.alias(x).fill_, number))
        return x

    def launch(self, run: Callable[[], object]) -> None:
        """A kernel of this device, whatever device is the current one."""
        before, self.world.device = self.world.device, self.device.streams.device.index or 0
        self.world.launch(run)
        self.world.device = before

    def offload(
        self, number: int, *, release: bool = True, block: bool = True, tier: str = "nvme"
    ) -> Ticket:
        """A value of `number`, offloaded and released; with `block` a kernel overwrites it then."""
        x = self.make(number)
        ticket = self.store.offload(x, f"x{number}", tier, True)
        if release:
            self.store.release(ticket, block)
        if release and block:
            overwrite = Kernel(partial(self.world.alias(x).fill_, -2))
            self.world.currents[self.device.streams.device.index or 0].queue.append(overwrite)
        return ticket

    def keep(self, number: int, tier: str) -> Ticket:
        """A value of `number` that stays where it is."""
        ticket = self.store.keep(self.make(number), f"x{number}", tier, True)
        self.store.release(ticket, block=False)
        return ticket

    @contextlib.contextmanager
    def on_some_stream(self) -> Generator[None]:
        """Sometimes on another stream, as work of another call of the step may be."""
        world, device = self.world, self.device.streams.device.index or 0
        before = world.currents[device]
        if world.random.random() < 0.5:
            world.current = next(it for it in reversed(world.streams) if it.device == device)
        yield
        world.current = before

    def wait(self, ticket: Ticket) -> torch.Tensor:
        """Wait, and let a kernel read the value."""
        y = self.store.wait(ticket)
        self.look(y, int(ticket.name[1:]))
        return y

    def look(self, y: torch.Tensor, expected: int) -> None:
        """A kernel that reads `y`."""
        raw = self.world.alias(y)
        self.launch(lambda: self.seen.append((expected, raw.min().item(), raw.max().item())))

    def check(self) -> None:
        """Check that every value read was right, and that all memory is free again."""
        self.world.refusal_rate = 0.0
        self.world.run_all()
        assert self.world.errors == []
        for number, least, most in self.seen:
            assert (least, most) == (number, number)
        assert self.store.statistics().live_bytes == 0
        self.device.take(1)  # What has passed is given back at the next call.
        assert self.device.arena.used_bytes <= 4096
        assert self.world.live_blocks == 0


def make_run(world: World, device: CudaDevice, *, direct: bool = False) -> Run:
    """A store on `device` of the installed world.

    direct: whether its engine moves device memory; values are of whole units then.
    """
    engine = DirectEngine(world) if direct else JobEngine(world)
    engines = {"nvme": engine, "host": MemoryEngine(HOST_BYTES)}
    store = OffloadStore(engines, max_inflight_bytes=2**26)
    store._devices._found[CPU] = device
    world.locks.append(store._ledger.lock)
    # Any stream may be the one that computes: copies must look for it at each call.
    if world.random.random() < 0.5:
        world.current = world.make_stream(device.streams.device.index or 0)
    world.make_stream(device.streams.device.index or 0)  # See on_some_stream.
    return Run(world, device, engine, store, WHOLE_LENGTH if direct else LENGTH)


def open_run(
    world: World,
    staging_bytes: int = 2**20,
    piece_bytes: int = PIECE_BYTES,
    *,
    direct: bool = False,
) -> Iterator[Run]:
    """One run, closed behind the loop that takes it."""
    with (
        pytest.MonkeyPatch.context() as patch,
        install(world, patch, staging_bytes, piece_bytes) as device,
    ):
        run = make_run(world, device, direct=direct)
        yield run
        run.store.close()


def train(run: Run, steps: int = 3) -> None:
    """Steps of two microbatches, with reads ahead, second backwards and given up ones."""
    numbers = itertools.count(1)
    for _ in range(steps):
        tickets: list[Ticket] = []
        try:
            run_step(run, tickets, numbers)
        finally:  # Also where memory is refused, which ends the step.
            run.world.random.shuffle(tickets)
            while tickets:
                run.store.free(tickets.pop())
    # Whatever comes next takes the memory that this let go.
    for _ in range(VALUES):
        y = run.make(next(numbers))
        run.launch(partial(run.world.alias(y).fill_, -1))
        run.look(y, -1)


def train_while_memory_lacks(run: Run) -> int:
    """Steps whose allocations are refused at times, each tried again; returns how many failed."""
    failed = 0
    for _ in range(8):
        run.world.refusal_rate = run.world.random.choice((0.05, 0.3))
        try:
            train(run, 1)
        except torch.OutOfMemoryError:
            failed += 1
        run.world.refusal_rate = 0.0
        run.world.empty_cache()
        train(run, 1)
    return failed


def run_step(run: Run, tickets: list[Ticket], numbers: Iterator[int]) -> None:
    """One step; its tickets are added to `tickets`."""
    world, random = run.world, run.world.random
    # Sometimes the host does not wait for anything that it need not: it is a step ahead.
    world.lags = random.choice(((0, 0, 1, 5), (0,)))
    releases = random.random() < 0.7
    for _ in range(VALUES):
        tier = random.choice(("nvme", "host"))
        if random.random() < 0.2:
            tickets.append(run.keep(next(numbers), tier))
            continue
        block = random.random() < 0.7
        tickets.append(run.offload(next(numbers), release=releases, block=block, tier=tier))
        world.progress()
        if random.random() < 0.1:
            world.empty_cache()
    move_what_stays(run, tickets)
    if random.random() < 0.5 and world.lags != (0,):
        world.run_all()  # Everything is written, so that it must be read.
        if releases:
            run.device.let_go()
            assert world.live_blocks == 0, "a value that is out takes no memory of the device"
    run.engine.read_failures = random.choice((0, 0, 1))
    keeps_graph = random.random() < 0.3
    gives_up = random.random() < 0.3
    for _ in range(1 + keeps_graph):
        ahead: list[Ticket] = []
        for ticket in reversed(tickets):
            with run.on_some_stream():
                run.store.prefetch(ticket)
            ahead.append(ticket)
            if len(ahead) == 3:
                run.wait(ahead.pop(0))
        if gives_up:
            ahead.clear()
        while ahead:
            run.wait(ahead.pop(0))


def move_what_stays(run: Run, tickets: list[Ticket]) -> None:
    """What a schedule lets another call of the step do: wait for writes, move what was kept."""
    for index, ticket in enumerate(tickets):
        with run.on_some_stream():
            if ticket.kept is not None:
                moved = run.store.move_kept(ticket)
                assert moved is not None
                run.store.free(ticket)
                tickets[index] = moved
            elif ticket.released and run.world.random.random() < 0.5:
                run.store.settle(ticket)


def choose_pieces(seed: int) -> int:
    """A value is one piece, two or three."""
    return (PIECE_BYTES, 1024, 512)[seed % 3]

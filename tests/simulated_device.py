"""A simulated CUDA device in one thread: streams, events, memory and I/O as data.

`install` replaces torch.cuda and the threads, so that the real code of devices/streams.py and
devices/cuda.py runs on it, and a wait for a future runs steps of the world. The host runs ahead:
copies and kernels are only queued. Each stream keeps its order; at each call of the host, and while
it waits, a seeded generator chooses the stream or the job that runs next. A copy has two steps, so
that the host can see it half done. As on a real device, a queued copy or kernel does not keep its
memory alive.

Memory is reused at once (last freed, first reused), and the writes of its next owner are simulated,
too: a kernel on the computing stream poisons every freed block. `errors` lists every copy whose
memory belonged to an earlier or a later owner when it ran.
"""

from __future__ import annotations

import contextlib
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from fxoffload.runtime.devices import streams
from fxoffload.runtime.devices.buffers import StagingBuffer
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.staging import AllocateFunction, StagingArena
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.engines.future import TransferFuture
from fxoffload.runtime.engines.ioengine import DeviceMover
from fxoffload.runtime.engines.pieces import PIECE_BYTES
from fxoffload.runtime.engines.slots import SlotAllocator
from fxoffload.runtime.engines.workers import Runnable

CPU = torch.device("cpu")
POISON = 0xA5
ALIGNMENT = 512
PAGE_BYTES = 4096


@dataclass(eq=False)
class Event:
    """Passed when its stream has come to where it was recorded."""

    world: World
    blocking: bool = False
    passed: bool = False

    def record(self, stream: Stream) -> None:
        self.world.progress()
        stream.queue.append(Record(self))

    def query(self) -> bool:
        self.world.progress()
        return self.passed

    def synchronize(self) -> None:
        self.world.run_until(lambda: self.passed)


@dataclass(frozen=True)
class Wait:
    event: Event


@dataclass(frozen=True)
class Record:
    event: Event


@dataclass(frozen=True)
class Kernel:
    run: Callable[[], object]


Command = Wait | Record | Kernel


@dataclass(eq=False)
class Stream:
    world: World
    device: int = 0
    queue: deque[Command] = field(default_factory=deque[Command])

    def wait_event(self, event: Event) -> None:
        self.queue.append(Wait(event))

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def record_event(self) -> Event:
        event = Event(self.world)
        event.record(self)
        return event

    def can_step(self) -> bool:
        if not self.queue:
            return False
        head = self.queue[0]
        return not isinstance(head, Wait) or head.event.passed

    def step(self) -> None:
        command = self.queue.popleft()
        if isinstance(command, Record):
            command.event.passed = True
        elif isinstance(command, Kernel):
            command.run()


@dataclass(eq=False)
class Block:
    """Memory that is never given back; `freed` counts what the host did, `reused` the device."""

    memory: np.ndarray
    stream: Stream
    readers: list[Stream] = field(default_factory=list[Stream])  # Of record_stream.
    freed: int = 0
    reused: int = 0

    @property
    def address(self) -> int:
        return self.memory.ctypes.data


class World:
    """The device, its streams, and the jobs of threads; `seed` fixes everything that happens."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lags: tuple[int, ...] = (0, 0, 1, 5)
        self.locks: list[threading.Lock] = []
        self.default_streams = {device: Stream(self, device) for device in (0, 1)}
        self.currents = dict(self.default_streams)  # Of the running thread, for each device.
        self.device = 0  # The current one of the running thread.
        self.captures = False
        self.streams = list(self.default_streams.values())
        self.jobs: list[Callable[[], None]] = []
        self.blocks: list[Block] = []
        self.free_blocks: list[Block] = []
        self.deferred: list[tuple[Block, list[Event]]] = []  # Freed, with the events of readers.
        self.refusal_rate = 0.0  # Of allocations.
        self.refuses_pinning = False
        self.host_owners: dict[int, int] = {}  # Of each page of staging buffers.
        self.host_memory: list[torch.Tensor] = []
        self.pinned_bytes: list[int] = []  # One entry for each call of the driver.
        self.computes = False
        self.errors: list[str] = []

    @property
    def current(self) -> Stream:
        """The current stream of the current device."""
        return self.currents[self.device]

    @current.setter
    def current(self, stream: Stream) -> None:
        self.currents[stream.device] = stream

    def find_current(self, *tensors: torch.Tensor) -> Stream:
        """The current stream of the device that the first of `tensors` on one is on."""
        blocks = (self._find_block(tensor.data_ptr()) for tensor in tensors)
        return next((self.currents[it.stream.device] for it in blocks if it), self.current)

    def make_stream(self, device: int = 0) -> Stream:
        """Another stream of `device`."""
        self.streams.append(Stream(self, device))
        return self.streams[-1]

    # Time

    def progress(self) -> None:
        """Run a random number of steps, as if the host were busy for a while."""
        if any(lock.locked() for lock in self.locks):
            return  # Jobs would wait for it; they are threads, but run in this one.
        for _ in range(self.random.choice(self.lags)):
            if not self.step():
                return

    def hold(self) -> None:
        """From now on run a step only if something waits for it (see progress)."""
        self.random.choice = lambda choices: choices[0]

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self.step(), "deadlock: everything waits"

    def run_all(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        choices = [stream.step for stream in self.streams if stream.can_step()]
        if self.jobs:
            choices.append(self._run_job)
        if not choices:
            return False
        self.random.choice(choices)()
        return True

    def submit(self, run: Callable[[], int]) -> Future[int]:
        """Queue `run` as a job of a thread, which a later step runs."""
        future: Future[int] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = run()
            except BaseException as error:
                # Without its frames, which hold the future.
                future.set_exception(error.with_traceback(None))
            else:
                future.set_result(result)

        self.jobs.append(job)
        return future

    def _run_job(self) -> None:
        # In a thread of its own, whose current streams are the default ones.
        before = self.device, self.currents
        self.device, self.currents = 0, dict(self.default_streams)
        self.jobs.pop(self.random.randrange(len(self.jobs)))()
        self.device, self.currents = before

    # Memory

    @property
    def live_blocks(self) -> int:
        self._give_back_passed()
        return len(self.blocks) - len(self.free_blocks)

    def empty_strided(
        self,
        size: Sequence[int],
        stride: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> torch.Tensor:
        """As torch.empty_strided: the memory goes back when the last tensor on it dies."""
        self.progress()
        return self.allocate(size, stride, dtype, self.currents[device.index or 0])

    def empty_cache(self) -> None:
        """As torch.cuda.empty_cache with expandable segments, which are the less careful.

        It waits for the stream that allocated a block, and for no other one, then unmaps it.
        """
        self._give_back_passed()
        while self.free_blocks:
            block = self.free_blocks.pop()
            self.run_until(lambda stream=block.stream: not stream.queue)
            block.reused = -1  # Whatever copies now finds that it is not its own.
            self.blocks.remove(block)

    def allocate(
        self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, stream: Stream
    ) -> torch.Tensor:
        if self.random.random() < self.refusal_rate:
            raise torch.OutOfMemoryError("simulated")
        self._give_back_passed()
        reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True) if n)
        nbytes = -(-(reach + 1) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        fitting = (
            block
            for block in reversed(self.free_blocks)
            if len(block.memory) == nbytes and block.stream is stream
        )
        block = next(fitting, None)
        if block is None:
            block = Block(np.full(nbytes, POISON, np.uint8), stream)
            self.blocks.append(block)
        else:
            self.free_blocks.remove(block)
        owner = block.memory[:]
        weakref.finalize(owner, self._free, block).atexit = False
        return torch.from_numpy(owner).view(dtype).as_strided(tuple(size), tuple(stride))

    def empty(self, nbytes: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        """As torch.empty, for host memory; kept, as copies that come too late still write to it."""
        memory = torch.full((nbytes + PAGE_BYTES,), POISON, dtype=dtype)
        self.host_memory.append(memory)
        if not pin_memory:
            return memory[:nbytes]
        if self.refuses_pinning:
            raise RuntimeError("CUDA error: out of memory")
        self.pinned_bytes.append(nbytes)
        start = -memory.data_ptr() % PAGE_BYTES  # The driver pins whole pages.
        return memory[start : start + nbytes]

    def launch(self, run: Callable[[], object]) -> None:
        """A kernel on the current stream."""
        self.current.queue.append(Kernel(run))
        self.progress()

    def alias(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` without a hold on its memory: what a kernel has."""
        block = self._find_block(tensor.data_ptr())
        if block is None:
            return tensor
        offset = tensor.data_ptr() - block.address
        raw = torch.from_numpy(block.memory)[offset:]
        raw = raw[: len(raw) // tensor.itemsize * tensor.itemsize].view(tensor.dtype)
        return raw.as_strided(tensor.shape, tensor.stride())

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        """Queue a copy that holds nothing, and notes an error when its memory is not its own."""
        check_target, check_source = self.watch(target), self.watch(source)
        to, came = self.alias(target), self.alias(source)
        half = len(to) // 2 if to.dim() else 0
        parts = [slice(0, half), slice(half, None)] if half else [...]
        for part in parts:

            def run(part: Any = part) -> None:
                check_target()
                check_source()
                self.computes = True
                to[part].copy_(came[part])
                self.computes = False

            stream.queue.append(Kernel(run))

    def watch(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Notes an error if the memory of `tensor` has another owner when it is called."""
        address = tensor.data_ptr()
        block = self._find_block(address)
        if block is not None:
            freed = block.freed

            def check_block() -> None:
                if block.reused != freed:
                    when = "before" if block.reused < freed else "after"
                    self.errors.append(f"a copy used device memory {when} its time")

            return check_block
        page = address // PAGE_BYTES
        owner = self.host_owners.get(page)

        def check_buffer() -> None:
            if self.host_owners.get(page) != owner:
                self.errors.append("a copy used a staging buffer after its time")

        return check_buffer

    def _find_block(self, address: int) -> Block | None:
        for block in self.blocks:
            if block.address <= address < block.address + len(block.memory):
                return block
        return None

    def record_stream(self, tensor: torch.Tensor, stream: Stream) -> None:
        """As Tensor.record_stream."""
        block = self._find_block(tensor.data_ptr())
        assert block is not None
        block.readers.append(stream)

    def _free(self, block: Block) -> None:
        block.freed += 1
        if not block.readers:
            self._give_back(block)
            return
        events: list[Event] = []
        for stream in block.readers:
            events.append(Event(self))
            stream.queue.append(Record(events[-1]))  # Nothing may run in a finalizer.
        block.readers = []
        self.deferred.append((block, events))

    def _give_back_passed(self) -> None:
        for block, events in list(self.deferred):
            if all(event.passed for event in events):
                self.deferred.remove((block, events))
                self._give_back(block)

    def _give_back(self, block: Block) -> None:
        self.free_blocks.append(block)

        def reuse() -> None:
            block.reused += 1
            block.memory[:] = POISON

        block.stream.queue.append(Kernel(reuse))


class JobWorkers:
    """Replaces Workers: a started transfer becomes a job of the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, transfer: Runnable) -> None:
        self._world.jobs.append(transfer.run)

    def shutdown(self) -> None:
        self._world.run_all()


class JobEngine:
    """An engine whose transfers are jobs; the next `write_failures` and `read_failures` fail."""

    name = "simulated"
    alignment = ALIGNMENT

    def __init__(self, world: World) -> None:
        self.move_device: DeviceMover | None = None
        self.write_failures = self.read_failures = 0
        self._world = world
        self._slots = SlotAllocator(ALIGNMENT)
        self._sizes: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}
        self._busy: dict[int, int] = {}  # Transfers that have not ended, by offset.

    def allocate(self, nbytes: int) -> int:
        offset = self._slots.allocate(nbytes)
        self._sizes[offset] = nbytes
        return offset

    def free(self, offset: int) -> None:
        self._slots.free(offset)
        for part in range(offset, offset + self._sizes.pop(offset), ALIGNMENT):
            self._bytes.pop(part, None)
            if self._busy.get(part):
                self._world.errors.append("a slot was freed before the end of its transfers")

    def reserve(self, nbytes: int) -> None: ...

    def describe(self, offset: int) -> str:
        return f"slot {offset}"

    def write(self, view: memoryview, offset: int) -> Future[int]:
        return self._write(view, offset)

    def read(self, view: memoryview, offset: int) -> Future[int]:
        return self._read(view, offset)

    def _write(
        self, view: memoryview, offset: int, check: Callable[[], None] = lambda: None
    ) -> Future[int]:
        def run() -> int:
            check()
            if self.write_failures:
                self.write_failures -= 1
                raise OSError("simulated")
            self._bytes[offset] = bytes(view)
            return len(view)

        return self._submit(run, offset)

    def _read(
        self, view: memoryview, offset: int, check: Callable[[], None] = lambda: None
    ) -> Future[int]:
        def run() -> int:
            check()
            if self.read_failures:
                self.read_failures -= 1
                view[:] = bytes([POISON]) * len(view)
                raise OSError("simulated")
            view[:] = self._bytes[offset]
            return len(view)

        return self._submit(run, offset)

    def _submit(self, run: Callable[[], int], offset: int) -> Future[int]:
        self._busy[offset] = self._busy.get(offset, 0) + 1
        future = self._world.submit(run)

        def end(_: Future[int]) -> None:
            self._busy[offset] -= 1

        future.add_done_callback(end)
        return future

    def close(self) -> None:
        self._world.run_all()

    def abandon(self) -> None: ...


class DirectEngine(JobEngine):
    """A JobEngine that moves device memory, too, and does not keep that memory alive.

    moved: the number of transfers of device memory.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.move_device = self._move_device
        self.moved = 0

    def _move_device(self, tensor: torch.Tensor, offset: int, *, write: bool) -> Future[int]:
        self.moved += 1
        check = self._world.watch(tensor)
        memory = memoryview(self._world.alias(tensor).numpy()).cast("B")
        return (self._write if write else self._read)(memory, offset, check)


def find_pages(buffer: StagingBuffer) -> range:
    """The numbers of the pages of `buffer`, which is aligned to them."""
    start = buffer.tensor.data_ptr()
    return range(start // PAGE_BYTES, -(-(start + buffer.tensor.nbytes) // PAGE_BYTES))


class WatchedArena(StagingArena):
    """An arena that overwrites a buffer when it is returned, and records its new owner."""

    def __init__(
        self, world: World, allocate: AllocateFunction, host_bytes: int, max_inflight_bytes: int
    ) -> None:
        super().__init__(allocate, host_bytes, max_inflight_bytes)
        self._world = world

    def take(self, nbytes: int) -> StagingBuffer:
        buffer = super().take(nbytes)
        for page in find_pages(buffer):
            self._world.host_owners.setdefault(page, 0)
        return buffer

    def give(self, buffer: StagingBuffer) -> None:
        for page in find_pages(buffer):
            self._world.host_owners[page] += 1
        buffer.tensor.fill_(POISON)
        super().give(buffer)


class QueueCopies(TorchFunctionMode):
    """Copies and clones of tensors go to the current stream.

    Nothing else may run inside, as torch turns the mode off while it is asked.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        world = self._world
        if world.computes:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.copy_:
            world.copy(args[0], args[1], world.find_current(args[0], args[1]))
            return args[0]
        if func is torch.Tensor.clone:
            source = args[0]
            stream = world.find_current(source)
            target = world.allocate(
                source.shape,
                torch.empty(source.shape, device="meta").stride(),
                source.dtype,
                stream,
            )
            world.copy(target, source, stream)
            return target
        return func(*args, **(kwargs or {}))


def make_device(
    world: World,
    device: torch.device = CPU,
    staging_bytes: int = 2**20,
    piece_bytes: int = PIECE_BYTES,
) -> CudaDevice:
    """A CudaDevice on the installed world; the simulated tensors of each device are on the CPU."""
    made = CudaDevice(CudaStreams(device), 0, staging_bytes, piece_bytes)
    made.arena = WatchedArena(world, made.streams.empty_host, 0, staging_bytes)
    made.workers.shutdown()
    made.workers = JobWorkers(world)  # pyright: ignore[reportAttributeAccessIssue]
    return made


@contextlib.contextmanager
def install(
    world: World,
    patch: pytest.MonkeyPatch,
    staging_bytes: int = 2**20,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[CudaDevice]:
    """A CudaDevice on the world, in whose context copies are queued."""

    @contextlib.contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        assert chosen.device == world.device, "leaving it would make a context on another device"
        before, world.current = world.current, chosen
        yield
        world.current = before

    @contextlib.contextmanager
    def device(index: int | None) -> Iterator[None]:
        before, world.device = world.device, index or 0
        yield
        world.device = before

    def set_device(device: torch.device) -> None:
        world.device = device.index or 0

    cuda = SimpleNamespace(
        Stream=lambda device: world.make_stream(device.index or 0),
        Event=lambda blocking=False: Event(world, blocking),
        stream=stream,
        device=device,
        current_stream=lambda: world.current,
        is_current_stream_capturing=lambda: world.captures,
        set_device=set_device,
    )
    simulated = SimpleNamespace(
        cuda=cuda,
        empty=world.empty,
        empty_strided=world.empty_strided,
        uint8=torch.uint8,
        Tensor=SimpleNamespace(record_stream=world.record_stream),
    )
    patch.setattr(streams, "torch", simulated)
    kinds: tuple[Any, ...] = Future, TransferFuture
    for kind in kinds:
        patch.setattr(kind, "result", _run_until_done(world, kind.result))
    with QueueCopies(world):
        yield make_device(world, staging_bytes=staging_bytes, piece_bytes=piece_bytes)


def _run_until_done(world: World, take_result: Callable[..., Any]) -> Callable[..., Any]:
    """`result` of a future, for which the world runs first."""

    def result(future: Any, timeout: float | None = None) -> Any:
        world.run_until(future.done)
        return take_result(future, timeout)

    return result

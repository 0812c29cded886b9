"""Devices: one for each torch device, made when it is first asked for; GPUs are simulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simulated_device import World, install

from fxoffload.errors import StoreError
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.devices import Devices
from fxoffload.runtime.devices.host import HostDevice

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    """On a machine whose current GPU is the second one."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with install(World(seed=1), monkeypatch):
        devices = Devices(host_bytes=4096, max_inflight_bytes=None)
        yield devices
        devices.close()


def find_gpu(devices: Devices, device: torch.device) -> CudaDevice:
    found = devices.find(device)
    assert isinstance(found, CudaDevice)
    return found


def test_each_torch_device_has_one_device(devices: Devices) -> None:
    first, second = find_gpu(devices, FIRST), find_gpu(devices, SECOND)
    assert first is not second
    assert (first.streams.device, second.streams.device) == (FIRST, SECOND)
    assert devices.find(FIRST) is first
    assert isinstance(devices.find(torch.device("cpu")), HostDevice)
    assert devices.find(torch.device("cpu")) is devices.find(torch.device("cpu"))


def test_a_gpu_without_a_number_is_the_current_one(devices: Devices) -> None:
    assert devices.find(torch.device("cuda")) is devices.find(SECOND)
    assert find_gpu(devices, SECOND).streams.device == SECOND


def test_a_gpu_pins_as_much_as_it_may_when_it_is_first_used(devices: Devices) -> None:
    assert find_gpu(devices, FIRST).arena._host_bytes == 4096
    devices.host_bytes += 100  # A host tier comes.
    assert find_gpu(devices, SECOND).arena._host_bytes == 4196


def test_other_kinds_are_refused(devices: Devices) -> None:
    with pytest.raises(StoreError, match="tensors on meta cannot be offloaded; only those of cpu"):
        devices.find(torch.device("meta"))


def test_what_could_not_be_pinned_is_counted_over_all_gpus(devices: Devices) -> None:
    assert devices.pageable_bytes == 0
    for device, nbytes in ((FIRST, 3), (SECOND, 4)):
        find_gpu(devices, device).arena.pageable_bytes = nbytes
    assert devices.pageable_bytes == 7
    devices.reset_statistics()
    assert devices.pageable_bytes == 0


def test_close_ends_the_threads_of_every_gpu(devices: Devices) -> None:
    gpus = [find_gpu(devices, device) for device in (FIRST, SECOND)]
    devices.close()
    for gpu in gpus:
        with pytest.raises(RuntimeError, match="after shutdown"):
            gpu.workers.submit(len, memoryview(b""))

"""Find the Device that moves the tensors of a torch device."""

from __future__ import annotations

import torch

from fxoffload.errors import StoreError
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.host import HostDevice
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.devices.transfer import Device


class Devices:
    """The Devices of a store, each made for the first tensor of its torch device.

    host_bytes, max_inflight_bytes: see CudaDevice; they count for Devices that are made later.
    """

    def __init__(self, host_bytes: int, max_inflight_bytes: int | None) -> None:
        self.host_bytes = host_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._found: dict[torch.device, Device] = {torch.device("cpu"): HostDevice()}

    def find(self, device: torch.device) -> Device:
        """The Device of `device`; raises StoreError for devices other than cpu and cuda."""
        found = self._found.get(device)
        if found is not None:
            return found
        if device.type != "cuda":
            raise StoreError(
                f"tensors on {device} cannot be offloaded; only those of cpu and cuda can"
            )
        if device == torch.device("cuda"):
            return self.find(torch.device("cuda", torch.cuda.current_device()))
        # setdefault: if two threads race, both use the Device that is kept.
        made = CudaDevice(CudaStreams(device), self.host_bytes, self._max_inflight_bytes)
        return self._found.setdefault(device, made)

    def let_go(self) -> None:
        """Account for all copies that have ended."""
        for device in self._cuda():
            device.let_go()

    @property
    def pageable_bytes(self) -> int:
        """Bytes of staging buffers that could not be pinned."""
        return sum(device.arena.pageable_bytes for device in self._cuda())

    def reset_statistics(self) -> None:
        """Reset `pageable_bytes` to 0."""
        for device in self._cuda():
            device.arena.pageable_bytes = 0

    def _cuda(self) -> list[CudaDevice]:
        return [device for device in list(self._found.values()) if isinstance(device, CudaDevice)]

    def close(self) -> None:
        """Wait for the copies in flight and give the buffers back."""
        for device in self._found.values():
            device.close()

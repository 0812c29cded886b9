"""Hardware as a record: the sustained speeds of a device, its drives and the link to the host."""

from __future__ import annotations

from dataclasses import dataclass

from fxoffload.errors import ConfigError
from fxoffload.sizes import parse_byte_rate, parse_bytes, parse_flop_rate


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware to plan for: numbers in the units of the field names, or text ("6.5GB/s").

    Give sustained speeds, not those of a data sheet.

    flops_per_second: arithmetic of the device, a multiply-add counted as two ("300 TFLOP/s").
    memory_bytes_per_second: bandwidth of the device's memory ("2TB/s").
    memory_bytes: size of the device's memory.
    drive_write_bytes_per_second, drive_read_bytes_per_second: bandwidth of all drives together.
    host_link_bytes_per_second: bandwidth between device and host in each direction (PCIe);
        transfers to and from a drive pass this link, too.
    transfer_latency_seconds: latency of one transfer.

    Raises ConfigError naming a field that is not a size, or not a rate above 0.
    """

    flops_per_second: float | str
    memory_bytes_per_second: float | str
    memory_bytes: int | str
    drive_write_bytes_per_second: float | str
    drive_read_bytes_per_second: float | str
    host_link_bytes_per_second: float | str
    transfer_latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory_bytes", parse_bytes("memory_bytes", self.memory_bytes))
        flops = parse_flop_rate("flops_per_second", self.flops_per_second)
        object.__setattr__(self, "flops_per_second", flops)
        for field in (
            "memory_bytes_per_second",
            "drive_write_bytes_per_second",
            "drive_read_bytes_per_second",
            "host_link_bytes_per_second",
        ):
            object.__setattr__(self, field, parse_byte_rate(field, getattr(self, field)))
        if self.transfer_latency_seconds < 0:
            raise ConfigError(
                f"transfer_latency_seconds={self.transfer_latency_seconds} is negative; "
                "pass seconds, 0 for none"
            )

    @property
    def device_bytes(self) -> int:
        """`memory_bytes` as an int."""
        return int(self.memory_bytes)

"""Parse and format sizes, rates and write ratings: "8GiB", "6.5GB/s", "600TBW"."""

from __future__ import annotations

import re

from fxoffload.errors import ConfigError

MIB = 2**20
UNLIMITED_BYTES = 2**62  # A limit on bytes that nothing reaches.

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KIB": 2**10,
    "MIB": MIB,
    "GIB": 2**30,
    "TIB": 2**40,
    "PIB": 2**50,
}


def parse_bytes(field: str, value: int | str | None, *, extra: str = "") -> int:
    """Bytes of `value`: an int, or a number with a unit such as "512MiB" or "1.5 GB".

    Raises ConfigError naming `field` and the accepted forms.
    """
    accepted = f'pass bytes as an int or a string such as "8GiB"{extra}'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{field}={value!r} is not a size; {accepted}")
    if isinstance(value, int):
        if value < 0:
            raise ConfigError(f"{field}={value} is negative; {accepted}")
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{field}={value!r} is not a size; {accepted}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_share(field: str, value: int | str) -> int | float:
    """Bytes as in parse_bytes, or for "90%" the share 0.9.

    Raises ConfigError naming `field` and the accepted forms.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    if match is None:
        return parse_bytes(field, value, extra=', or a share such as "90%"')
    share = float(match[1]) / 100
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"{field}={value!r} is no share of a whole; pass one above 0% up to 100%")
    return share


def parse_endurance(field: str, value: int | str) -> int:
    """Bytes of a drive's write rating, above 0: "600TBW", "1.2PBW", or as in parse_bytes.

    Raises ConfigError naming `field` and the accepted forms.
    """
    bare = re.sub(r"(?i)bw\s*$", "B", value) if isinstance(value, str) else value
    try:
        rating = parse_bytes(field, bare)
    except ConfigError:
        rating = 0
    if rating == 0:
        raise ConfigError(
            f"{field}={value!r} is not a write rating; "
            'pass the one of the drive\'s data sheet, such as "600TBW", or bytes'
        )
    return rating


def parse_byte_rate(field: str, value: float | str) -> float:
    """Bytes per second, above 0, of `value`: a number, or text such as "6.5GB/s".

    Raises ConfigError naming `field` and the accepted forms.
    """
    return _parse_rate(field, value, r"([KMGTP]I?)?B", "GB/s")


def parse_flop_rate(field: str, value: float | str) -> float:
    """Operations per second, above 0, of `value`: a number, or text such as "312TFLOP/s".

    Raises ConfigError naming `field` and the accepted forms.
    """
    return _parse_rate(field, value, r"([KMGTP])?FLOP", "TFLOP/s")


def format_bytes(nbytes: float) -> str:
    """`nbytes` as readable text: "512 B", "3.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def _parse_rate(field: str, value: float | str, unit: str, example: str) -> float:
    rate = value
    if isinstance(value, str):
        match = re.fullmatch(rf"(?i)\s*(\d+(?:\.\d+)?)\s*(?:({unit})/s)?\s*", value)
        prefix = ((match[3] or "") if match else "").upper()
        rate = float(match[1]) * _UNITS[f"{prefix}B"] if match else 0.0
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise ConfigError(
            f"{field}={value!r} is not a rate; pass a number above 0 or a string such as "
            f'"6.5{example}"'
        )
    return float(rate)

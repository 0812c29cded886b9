"""Holders: what is in a device's memory at one moment, with where in the program it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """Memory that one value or node takes. call, graph: None and "" if it is no value of a call."""

    name: str
    call: int | None
    graph: str
    module: str
    source: str
    op: str
    nbytes: int


def list_rows(holders: Iterable[Holder], *, whole_paths: bool = False) -> list[tuple[str, ...]]:
    """A row of headings, then one for each holder.

    whole_paths: whether to show the whole path of a source, not only its last folder and the file.
    """
    rows = [("MiB", "name", "call", "module", "op", "source")]
    rows += [
        (
            f"{each.nbytes / 2**20:.2f}",
            each.name,
            "" if each.call is None else str(each.call),
            each.module,
            each.op,
            each.source if whole_paths else shorten_source(each.source),
        )
        for each in holders
    ]
    return rows


def shorten_source(source: str) -> str:
    """The file's name and its folder's, with the line."""
    return "/".join(source.split("/")[-2:])

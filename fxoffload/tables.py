"""Format tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format `rows` as aligned columns of text; the first row is the heading."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

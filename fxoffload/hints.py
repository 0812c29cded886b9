"""Guess what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def find_hint(name: str, valid: Collection[str], *, prefix: str = "") -> str:
    """ "did you mean 'near'? " for the nearest of `valid`; "" where none is near.

    prefix: what stands before each name, and is not compared.
    """
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"did you mean {prefix + near[0]!r}? " if near else ""

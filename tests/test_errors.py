"""Errors: all of them are an OffloadError."""

from __future__ import annotations

import pytest

from fxoffload import errors
from fxoffload.holders import Holder

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS)
def test_one_family(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.OffloadError)
    assert kind.__doc__
    assert str(kind("subject: fact; remedy")) == "subject: fact; remedy"


def test_relations() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    for kind in (errors.StoreFull, errors.StoreClosed, errors.TransferError):
        assert issubclass(kind, errors.StoreError)
    assert not issubclass(errors.GraphError, errors.StoreError)


def test_another_message_changes_nothing_else() -> None:
    error = errors.BudgetError("subject: fact; remedy")
    error.budget_bytes, error.lowest_peak_bytes = 17, 19
    error.holders = (Holder("tanh", 0, "", "", "", "", 23),)
    said = error.rephrase("other words")
    assert str(said) == "other words"
    assert vars(said) == vars(error)

"""Errors: all of them are an OffloadError."""

from __future__ import annotations

import pytest

from fxoffload import errors


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_one_family(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.OffloadError)
    assert kind.__doc__
    assert str(kind("subject: fact; remedy")) == "subject: fact; remedy"


def test_relations() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    for kind in (errors.StoreFull, errors.StoreClosed, errors.TransferError):
        assert issubclass(kind, errors.StoreError)
    assert not issubclass(errors.GraphError, errors.StoreError)

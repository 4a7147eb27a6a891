"""Sockets that the NATS client leaves to the garbage collector are collected with the test that opened them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _sockets_end_with_their_test() -> Iterator[None]:
    yield
    with warnings.catch_warnings():  # after a login that fails the library closes no socket
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

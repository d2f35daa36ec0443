"""SIGTERM as a request to stop, with signals that this process sends itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hiar.io.stopping import asked_to_stop


@pytest.fixture
def own() -> Iterator[list[int]]:
    """The signals received by a handler that was installed before."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_is_noted_and_afterwards_all_is_as_before(own: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), asked_to_stop() as stop:
        assert not stop()
        terminate()
        assert stop()
        raise ZeroDivisionError
    assert own == []
    terminate()
    assert own == [signal.SIGTERM]


def test_a_thread_leaves_it_to_the_main_one(own: list[int]) -> None:
    def asked() -> bool:
        with asked_to_stop() as stop:
            terminate()
            return stop()

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(asked).result()
    assert own == [signal.SIGTERM]

"""SIGTERM as a request to stop, with signals that this process sends itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hiar.io.stopping import asked_to_stop


@pytest.fixture
def received_outside() -> Iterator[list[int]]:
    """The signals that a handler installed earlier has received."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_sets_the_flag_and_the_old_handler_is_restored(received_outside: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), asked_to_stop() as stop:
        assert not stop()
        terminate()
        assert stop()
        raise ZeroDivisionError
    assert received_outside == []
    terminate()
    assert received_outside == [signal.SIGTERM]


def test_outside_the_main_thread_the_old_handler_stays(received_outside: list[int]) -> None:
    def stopped() -> bool:
        with asked_to_stop() as stop:
            terminate()
            return stop()

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(stopped).result()
    assert received_outside == [signal.SIGTERM]

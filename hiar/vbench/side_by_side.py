"""Dimensions in parallel, one per device: each is a process of VBench, for which one of our threads waits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """The running processes, so that whoever waits for them can end them all."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), False
        self._started: list[subprocess.Popen[str]] = []

    def add(self, worker: subprocess.Popen[str]) -> None:
        """Register a process that has just started; after `end` it is killed at once."""
        with self._lock:
            self._started.append(worker)
            if self._ended:
                worker.kill()

    def end(self) -> None:
        """Kill the running processes and any that are added later."""
        with self._lock:
            self._ended = True
            for worker in self._started:
                worker.kill()


def side_by_side(
    tasks: Sequence[Task], devices: Sequence[str], work: Callable[[Task, str, Workers], Result]
) -> list[Result]:
    """The result of ``work`` for each task, in their order; each has a device of its own while it runs.

    The first exception, including an interruption by the user, ends all running processes and is raised.
    """
    workers, free = Workers(), SimpleQueue[str]()
    for device in devices:
        free.put(device)

    def one(task: Task) -> Result:
        device = free.get()
        try:
            return work(task, device, workers)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(one, task) for task in tasks]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            workers.end()
            raise
        return [future.result() for future in futures]

"""The CPU settings of a computing process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from commands import environment

from hiar.io.cpu import settle_cpu

# Allocates as trainings do and frees everything after each step: first one more tensor of 1 MB per step, then the same
# three of 8 MB, counted in the second half. Prints the page faults of both.
MORE, SAME = 40, 40
TRAIN = f"""
import resource, torch
from hiar.io.cpu import settle_cpu
settle_cpu(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for step in range({MORE}):
    tensors = [torch.ones(256 * 1024) for _ in range(step + 1)]
    del tensors
more = faults() - before
for step in range({SAME}):
    if step == {SAME} // 2:
        before = faults()
    tensors = [torch.ones(2 * 1024 * 1024) for _ in range(3)]
    del tensors
print(more, faults() - before)
"""
PAGES = 256  # in 1 MB


def test_threads_are_as_requested_else_omp_num_threads_else_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        settle_cpu()
        assert torch.get_num_threads() == 2
        settle_cpu(3)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        settle_cpu()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose malloc is told what to keep")
def test_memory_freed_by_a_step_stays_in_the_process_unless_malloc_is_set_otherwise() -> None:
    def faults(**variables: str) -> tuple[int, int]:
        run = subprocess.run(
            [sys.executable, "-c", TRAIN], env=environment() | variables, capture_output=True, check=True
        )
        more, same = run.stdout.split()
        return int(more), int(same)

    more, same = faults()
    assert more < 2 * MORE * PAGES
    assert same < 24 * PAGES
    more, same = faults(MALLOC_TRIM_THRESHOLD_="65536")
    assert more > MORE * MORE // 2 * PAGES
    assert same >= SAME // 2 * 24 * PAGES

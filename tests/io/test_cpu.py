"""The processor as a process that computes wants it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from commands import environment

from hiar.io.cpu import settle_cpu

STEPS, PAGES = 20, 6144
# What a step of a training does with memory: three tensors of 8 MB, all of them given back. Counted in its second half.
TRAIN = f"""
import resource, torch
from hiar.io.cpu import settle_cpu
settle_cpu(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(2 * {STEPS}):
    if step == {STEPS}:
        before = faults()
    three = [torch.ones(2 * 1024 * 1024) for _ in range(3)]
    del three
print(faults() - before)
"""


def test_a_command_computes_in_as_many_threads_as_it_is_told_and_else_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_memory_that_each_step_gives_back_is_not_the_systems_again_unless_malloc_is_told_so() -> None:
    def faults(**variables: str) -> int:
        run = [sys.executable, "-c", TRAIN]
        return int(subprocess.run(run, env=environment() | variables, capture_output=True, check=True).stdout)

    assert faults() < PAGES
    assert faults(MALLOC_TRIM_THRESHOLD_="65536") > STEPS * PAGES

"""On a GPU: the results of a CPU, from the GPU's own kernels and number formats, without needless waits."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from shared import Case, runtime, train_case
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from benchmarks.presets import PRESETS, Setup, build
from benchmarks.walks import ALONE, BATCHED, SELF_FORCING, Walk
from hiar.io.hardware import peak_memory_mb
from hiar.io.process_group import joined
from hiar.io.silence import found_by
from hiar.models.compiled import allowed, measure_compiled
from hiar.models.fp8 import CAPABILITY, ERROR, Fp8Linear, use_fp8, with_fp8
from hiar.models.kernels import KERNELS, measure_kernels, using
from hiar.rollout.walk import generate
from hiar.rollout.walk import walk as walked
from hiar.stages.computing import full_pass
from hiar.training.parallel import local, shard
from hiar.training.role import HOST, move_states
from hiar.transfer import download

GPU = torch.device("cuda")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler, gcc")
needs_fp8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY, reason="no GPU from Hopper on"
)


def setups(dtype: torch.dtype) -> tuple[Setup, Setup]:
    """The same small network with Wan's layout on the CPU and on the GPU."""
    here = build(replace(PRESETS["wan-tiny"](), dtype=dtype), torch.device("cpu"), 2)
    there = replace(here, denoiser=copy.deepcopy(here.denoiser).to(GPU), text=here.text.to(GPU))
    return here, there


def video_of(setup: Setup, walk: Walk) -> Tensor:
    rollout = setup.rollout(setup.preset.grid(walk, 6))
    return generate(setup.denoiser, rollout, walk.order, passes=walk.passes).cpu()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("walk", ALONE, ids=lambda walk: walk.name)
@torch.no_grad()
def test_a_walk_gives_the_video_of_a_cpu(walk: Walk) -> None:
    here, there = setups(torch.float32)
    assert distance(video_of(there, walk), video_of(here, walk)) < 1e-3


@pytest.mark.parametrize("walk", [BATCHED, SELF_FORCING], ids=lambda walk: walk.name)
@torch.no_grad()
def test_between_blocks_nothing_waits_for_the_gpu(walk: Walk) -> None:
    """Noise, positions and levels are copied from the host asynchronously; else passes would wait for each other."""
    _, there = setups(torch.bfloat16)
    rollout = there.rollout(there.preset.grid(walk, 9))
    blocks = walked(there.denoiser, rollout, walk.order, passes=walk.passes)
    next(blocks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len([*blocks]) == 8
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_later_writes_do_not_change_a_download() -> None:
    x = torch.ones(1 << 24, device=GPU)
    arrived = download(x)
    x.fill_(2)
    copy = arrived()
    assert not copy.is_pinned()
    assert torch.equal(copy, torch.ones(1 << 24))


@torch.no_grad()
def test_every_kernel_that_works_here_can_be_chosen_and_is_right() -> None:
    found = measure_kernels(96, 480, heads=4, head_dim=64, batch=2, device=GPU, dtype=torch.bfloat16)
    assert "math" in found
    assert 2 <= len(found) <= len(KERNELS)
    _, there = setups(torch.bfloat16)
    expected = video_of(there, BATCHED)
    for name in found:
        with using(name):
            assert distance(video_of(there, BATCHED), expected) < 0.1, name


@needs_fp8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_fp8_layers_are_accurate_on_numbers_that_fp8_represents(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(GPU, dtype)
    linear.weight.copy_(torch.randint(-8, 9, (32, 64)))
    linear.weight[:, 0] = 448.0  # the largest fp8 number, so that nothing is scaled
    x = torch.randint(-8, 9, (3, 5, 64)).to(GPU, dtype)
    x[..., 1] = 448.0
    out = Fp8Linear(linear)(x)
    assert out.dtype == dtype
    assert distance(out, linear(x)) < 2 * torch.finfo(torch.bfloat16).eps


@needs_fp8
@torch.no_grad()
def test_a_pass_in_fp8_stays_within_the_allowed_error() -> None:
    _, there = setups(torch.bfloat16)
    rollout = there.rollout(there.preset.grid(BATCHED, 6))
    assert 0 < with_fp8(there.denoiser, lambda: full_pass(there.denoiser, rollout, 4)) < ERROR


@needs_compiler
@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=needs_fp8)])
@torch.no_grad()
def test_compiled_layers_are_right(fp8: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    _, there = setups(torch.bfloat16)
    if fp8:
        use_fp8(there.denoiser)
    with fresh_cache():  # otherwise nothing is compiled that a former run has left on the disk
        found = measure_compiled(
            there.denoiser, full_pass(there.denoiser, there.rollout(there.preset.grid(BATCHED, 6)), 4)
        )
    assert found.error <= allowed(there.denoiser)
    assert not counters["inductor"]["select_algorithm_autotune"], (
        "many kernels were compiled and timed for each product"
    )
    torch._dynamo.reset()


def test_peak_memory_includes_the_gpus() -> None:
    held = torch.ones(2**26, device=GPU)  # 256 MB
    peak = peak_memory_mb("auto")
    del held
    assert 256 <= peak["peak_gpu_memory_mb"] <= peak["peak_gpu_memory_kept_mb"]
    assert peak_memory_mb("cpu").keys() == {"peak_memory_mb"}


def test_a_group_uses_nccl_and_reports_its_status() -> None:
    with joined(runtime(1, device="auto")) as ranks:
        assert ranks.device.type == "cuda"
        assert ranks.sums([1.5, 2.0]) == [1.5, 2.0]
        status = found_by(ranks.device)
        assert status is not None, "this torch cannot say what NCCL has found"
        assert status().name == "SUCCESS"


def test_offloaded_training_gives_the_same_weights() -> None:
    case = Case("distill", wan=True, muon=True, replay=2, steps=2, device="cuda")
    learnt = []
    for offload in (False, True):
        with joined(runtime(1, device="auto")) as ranks:
            weights = train_case(case._replace(offload=offload), ranks)
        learnt.append(torch.cat([weights[name].double().flatten() for name in sorted(weights)]))
    assert distance(learnt[1], learnt[0]) < 1e-6


def test_an_offloaded_network_is_in_pinned_memory() -> None:
    with joined(runtime(1, device="auto")) as ranks:
        network = build(replace(PRESETS["wan-tiny"](), dtype=torch.float32), torch.device("cpu"), 2).denoiser
        shard(network, ranks, offload=True)
        assert {local(one).device.type for one in network.parameters()} == {"cpu"}
        assert all(local(one).is_pinned() for one in network.parameters())


def test_an_optimisers_states_are_on_the_host_between_updates() -> None:
    weight = nn.Parameter(torch.ones(3, 3, device=GPU))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    move_states(optimizer, HOST)
    assert {one.device.type for one in optimizer.state[weight].values()} == {"cpu"}
    move_states(optimizer)
    assert {one.device.type for one in optimizer.state[weight].values() if one.ndim} == {"cuda"}
    optimizer.step()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("processes", [None, 1], ids=["whole", "sharded"])
def test_a_distillation_gives_the_weights_of_a_cpu(processes: int | None, checkpointing: bool) -> None:
    case = Case("distill", wan=True, replay=2, steps=2, checkpointing=checkpointing)
    learnt = []
    for device in ("cpu", "cuda"):
        with joined(runtime(processes, device=device.replace("cuda", "auto"))) as ranks:
            weights = train_case(case._replace(device=device), ranks)
        learnt.append(torch.cat([weights[name].double().flatten() for name in sorted(weights)]))
    assert distance(learnt[1], learnt[0]) < 1e-3

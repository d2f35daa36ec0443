"""Short trainings shared by several processes, in a module that these can import."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from tiny import tiny_denoiser
from torch import Tensor

from hiar.config import (
    AdamW,
    Conventions,
    Distill,
    ForwardKL,
    Levels,
    Muon,
    Optimizer,
    Runtime,
    Schedule,
    Variant,
    Video,
)
from hiar.errors import UserError
from hiar.io.launcher import RENDEZVOUS
from hiar.io.process_group import Ranks, joined
from hiar.io.states import temporary_state
from hiar.losses.regression import block_levels, noisy_share, ode_regression
from hiar.models.attention import BlockCausal
from hiar.noise import normals, stream
from hiar.schedule import step_sigmas
from hiar.stages.pairs import at_levels
from hiar.training.checkpoint import Curve, Saving, load_state
from hiar.training.diffusion_forcing import Pairs
from hiar.training.distillation import Distillation, distillation_step
from hiar.training.loop import train
from hiar.training.parallel import deal, shard
from hiar.training.role import Role, kept_weights, learn, make_role
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.shapes.codec import PatchCodec

SIGMAS, SEED = step_sigmas(3, 2.0), 3
STATES = torch.randn(6, 4, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
ADAMW = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.1),
    muon=None,
    warmup=1,
    decay="cosine",
    clip=0.5,
    ema=0.9,
    ema_from=0,
)
MUON = ADAMW.model_copy(update={"muon": Muon(lr=0.01, weight_decay=0.1)})


def save_state(folder: Path, step: int, roles: Mapping[str, Role], memory: Mapping[str, Tensor], curve: Curve) -> None:
    """Save the state of a run of one process after ``step`` updates; it replaces an older one."""
    with Saving(folder, roles, memory) as saving:
        saving.begin(step, curve)


class Silent:
    def log(self, step: int, metrics: object) -> None: ...


class Case(NamedTuple):
    """A training. wan: the network predicts the flow, else x0 with coordinates; half: compute in bf16.

    device: cpu, or cuda where there is a GPU; offload: real score and optimiser states are on the host; checkpointing:
    layers are recomputed in backward.
    """

    name: str
    wan: bool = False
    muon: bool = False
    replay: int | None = None
    micro_batch: int | None = 2
    steps: int = 20
    half: bool = False
    device: str = "cpu"
    offload: bool = False
    checkpointing: bool = False

    @property
    def optimizer(self) -> Optimizer:
        return MUON if self.muon else ADAMW


def network(case: Case, seed: int):
    made = tiny_denoiser("flow" if case.wan else "x0", coordinates=not case.wan, seed=seed)
    return made.checkpoint(case.checkpointing).to(case.device)


def accelerator_of(case: Case) -> Accelerator:
    AcceleratorState._reset_state(True)  # accelerate otherwise allows one precision and device per process
    return Accelerator(cpu=case.device == "cpu", mixed_precision="bf16" if case.half else "no")


def runtime(processes: int | None, half: bool = False, device: str = "cpu") -> Runtime:
    return Runtime(
        device=device,
        precision="bf16" if half else "no",
        checkpointing=False,
        threads=1,
        variant_threads=1,
        checkpoint_minutes=1.0,
        processes=processes,
        stall_seconds=120.0,
    )


def init_roles(case: Case, ranks: Ranks):
    role = make_role(network(case, 1), case.optimizer, case.steps, ranks, offloaded=case.offload)
    parts, accelerator = deal(4, case.micro_batch, ranks), accelerator_of(case)

    def step(number: int) -> dict[str, float]:
        random = stream("init batch", SEED, step=number)
        chosen = torch.from_numpy(random.integers(len(STATES), size=4))
        levels = block_levels(4, 2, len(SIGMAS), random)
        sigma = SIGMAS[levels]
        share = noisy_share(sigma)

        def loss_of(part: range):
            chosen_part = slice(part.start, part.stop)
            rows = chosen[chosen_part]
            drawn = (at_levels(STATES, rows, levels[chosen_part], 2), STATES[rows, -1], sigma[chosen_part], TEXT[rows])
            drawn = [tensor.to(case.device) for tensor in drawn]
            with accelerator.autocast():
                loss = ode_regression(role.module, *drawn, BlockCausal(2, 2), 0.2, share)
            return loss, {"loss": loss}

        return learn(role, number, parts, loss_of, ranks, accelerator)

    return {"student": role}, step, {}


def distill_roles(case: Case, ranks: Ranks):
    settings = Distill(
        steps=case.steps,
        batch=4,
        micro_batch=case.micro_batch,
        windows=2,
        guidance=3.0,
        critic_updates=2,
        real_score=None,
        critic_warmup=2,
        critic_batch=8,
        critic_floor=0.3,
        replay=case.replay,
        levels=Levels(shift=1.5, lowest=0.1, highest=0.8),
        generator=case.optimizer,
        critic=case.optimizer.model_copy(update={"ema": None}),
    )
    spec = ForwardKL(weight=3.0, steps=2, attention="causal") if case.wan else None
    variant = Variant(order="step_first", context="output", level=1.0, forward_kl=spec)
    teacher = network(case, 3).requires_grad_(False)
    if ranks.mesh is not None:
        shard(teacher, ranks, offload=case.offload)
    role = partial(make_role, ranks=ranks, offloaded=case.offload)
    job = Distillation(
        student=role(network(case, 1), settings.generator, settings.steps),
        critic=role(network(case, 2), settings.critic, settings.all_steps * 2),
        teacher=teacher,
        roll_out=SelfRollout(
            (3, 2, 4, 4),
            2,
            variant,
            Video(frames=4, block=2, window=4, sink_blocks=0),
            Schedule(teacher_shift=4.0, student_shift=2.0, student_steps=3, renoise="sde"),
            Conventions(given="level", sinks="turn", context_noise=0.0),
        ),
        codec=PatchCodec(patch=1, channels=3, width=4, depth=1),
        settings=settings,
        prompts=lambda samples: normals("measuring", 0, samples, (5, 8)).to(case.device),
        no_text=torch.ones(1, 5, 8, device=case.device),
        student_samples=1000,
        critic_samples=2000,
        pairs=Pairs(STATES, SIGMAS, lambda chosen: TEXT[chosen].to(case.device)),
        seed=SEED,
        accelerator=accelerator_of(case),
        ranks=ranks,
    )
    return {"student": job.student, "critic": job.critic}, lambda step: distillation_step(job, step), job.replay


def make(case: Case, ranks: Ranks):
    return (init_roles if case.name == "init" else distill_roles)(case, replace(ranks, half=case.half))


def train_case(case: Case, ranks: Ranks) -> dict[str, Tensor]:
    """Kept weights of all roles after all steps, unsharded, and the metrics of every step but the first."""
    roles, step, _ = make(case, ranks)
    curve = [step(number) for number in range(case.steps)]
    weights = {f"{name}/{key}": value for name, role in roles.items() for key, value in kept_weights(role).items()}
    return weights | {"curve": torch.tensor([[*row.values()][-3:] for row in curve[1:]], dtype=torch.float64)}


def run_rank(rank: int, size: int, folder: str, cases: list[Case], state: Case | None) -> None:
    """Run one of several processes; the first saves the results. With a ``state``, see `save_and_load_states`."""
    torch.set_num_threads(1)
    os.environ |= {RENDEZVOUS: f"{folder}/rendezvous", "RANK": str(rank), "WORLD_SIZE": str(size)}
    with joined(runtime(size)) as ranks:
        for number, case in enumerate(cases):
            tensors = train_case(case, ranks)
            if ranks.leads:
                save_file(tensors, Path(folder) / f"{number}.safetensors")
        if state is not None:
            save_and_load_states(state, ranks, Path(folder))


def save_and_load_states(case: Case, ranks: Ranks, folder: Path) -> None:
    """Load and save a state of one process; then try SIGTERM, a full disk, a missing state and `Ranks.told`."""
    roles, _, memory = make(case, ranks)
    step, curve = load_state(folder / "of one", roles, memory, ranks)
    with Saving(folder / "again", roles, memory, ranks=ranks) as saving:
        saving.begin(step, curve)
    roles, train_step, memory = make(case, ranks)

    def stopped(number: int) -> dict[str, float]:
        if number == 2 and not ranks.leads:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(number)

    options = {"checkpoint_minutes": 60, "memory": memory, "ranks": ranks}
    try:
        train("stopped", case.steps, stopped, roles, folder / "stopped", Silent(), **options)
    except SystemExit as end:
        steps, _ = load_state(folder / "stopped", roles, memory, ranks)
        (folder / f"ended-{ranks.rank}.json").write_text(json.dumps({"code": end.code, "steps": steps}))
    try:
        with Saving(folder / "full", roles, memory, ranks=ranks) as saving:
            saving.begin(1, [])
            saving.finish()
            if not ranks.leads:  # a folder where a file should be written
                (temporary_state(folder / "full", 2) / ".00001.safetensors.tmp" / "full").mkdir(parents=True)
            saving.begin(2, [])
    except UserError as error:
        (folder / f"full-{ranks.rank}.txt").write_text(str(error))
    try:
        load_state(folder / ("again" if ranks.leads else "nowhere"), roles, memory, ranks)
    except UserError as error:
        (folder / f"apart-{ranks.rank}.txt").write_text(str(error))
    decided = [ranks.told(ranks.leads), ranks.told(not ranks.leads)]
    (folder / f"told-{ranks.rank}.json").write_text(json.dumps(decided))


def run_ranks(size: int, folder: Path, cases: list[Case], state: Case | None = None) -> None:
    """Run all processes of a group; with a ``state``, they save and load states of that training, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiar.training.distillation", "torch.distributed.fsdp"])  # once for all of them
    processes = [context.Process(target=run_rank, args=(rank, size, str(folder), cases, state)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0

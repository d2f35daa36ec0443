"""Stage pairs: teacher ODE trajectories, kept at the student's levels only, or imported ones."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Count, Params
from hiar.errors import UserError
from hiar.io.artifacts import Facts, facts, read_manifest
from hiar.io.files import writing
from hiar.io.fingerprints import require_content
from hiar.io.free import require_room
from hiar.io.manifests import MANIFEST, load_manifest
from hiar.io.progress import Progress
from hiar.io.shards import Rows, StoredRows, is_whole, read_shard, shard_path, write_shard
from hiar.io.text import split_lines
from hiar.models.generator import Generator, load_generator
from hiar.noise import normals
from hiar.rollout.ode import ode_states
from hiar.schedule import solver_sigmas, student_sigmas
from hiar.stages.common import Paths, Stage, stage, write_metrics
from hiar.worlds.interface import FIRST_CLIP, open_world

CAPTIONS = "captions.txt"  # one line per trajectory
STATES, CLIPS = "states", "clips"  # what a shard holds
KEPT_IN = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAME_LEVEL = 1e-5  # by how much equal levels may differ: they are written with few digits


@dataclass(frozen=True)
class Trajectories:
    """states: (N, S + 1, C, F, h, w) at sigmas (S + 1,), from pure noise to clean, on the disk; a caption each.

    clips: (N, 1, C, F, h, w), clean videos, if each block of a trajectory was solved with the earlier blocks of such a
    clip as context; the trajectory's end is then no video. All are read as float32, however they are stored.
    """

    states: Rows
    sigmas: Tensor
    captions: list[str]
    clips: Rows | None = None

    def clean(self, rows: Tensor) -> Tensor:
        """Clean videos (n, C, F, h, w) of these rows (n,): the ends of the trajectories, or the clips."""
        return (self.states if self.clips is None else self.clips)[rows, -1]


def at_levels(states: Rows, rows: Tensor, levels: Tensor, block: int) -> Tensor:
    """Clips (B, C, F, H, W), each block of ``block`` frames at its own level; other levels are not read.

    states: trajectories (N, S + 1, C, F, H, W); rows: (B,) of them; levels: (B, F / block).
    """
    clips = [
        torch.cat([states[row[None], level, :, n * block : (n + 1) * block] for n, level in enumerate(own)], dim=2)
        for row, own in zip(rows, levels.tolist(), strict=True)
    ]
    return torch.cat(clips)


def run(params: Params, workspace: Path, seed: int) -> None:
    """Write artifacts/seed-S/pairs: shards of ``pairs.shard`` trajectories; complete shards are not made again."""
    paths, spec = Paths(workspace, seed), params.pairs
    parents = {"teacher": (paths.teacher, "checkpoint")}
    with stage("pairs", params, workspace, paths.pairs, seed=seed, parents=parents, shared=True) as work:
        if spec.source is not None:
            if work.ranks.leads:
                _adopt(work, spec.source, load_generator(paths.teacher), workspace, seed)
            return
        captions = pair_captions(params, seed, range(spec.count))
        teacher = load_generator(paths.teacher)
        teacher.text.to(work.accelerator.device)
        teacher.prepare(captions if spec.stored else captions[: spec.batch])  # before other networks are on the device
        teacher.to(work.accelerator.device)
        if spec.stored:
            _make_shards(work, teacher, seed, captions)
        if not work.ranks.leads:
            return
        (work.folder / CAPTIONS).write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
        if spec.stored:
            _write_figures(work, workspace, seed, load_shard(work.folder, 0))
        else:  # solve a few of them, so that a teacher that fails is reported here
            few = range(min(spec.batch, spec.count))
            states = solve(params, teacher, seed, few, captions[: len(few)])
            check_states(states, few)
            _write_figures(work, workspace, seed, states)
        sigmas = student_sigmas(params.schedule).tolist()
        work.finish("pairs", count=spec.count, shard=spec.shard if spec.stored else None, sigmas=sigmas)


def _write_figures(work: Stage, workspace: Path, seed: int, states: Tensor) -> None:
    spread = float(states[:, -1].float().std())
    metrics = {"count": float(work.params.pairs.count), "latent_std": spread}
    write_metrics(workspace, f"seed-{seed}/pairs", metrics)
    work.run.log(0, metrics)


def _adopt(work: Stage, source: Path, teacher: Generator, workspace: Path, seed: int) -> None:
    """Adopt pairs that `hiar import-pairs` wrote, as hard links where the file system allows them.

    If they have more levels than the student, only its own are copied. Raises UserError unless they have the
    experiment's size and number, and the levels that it needs (`levels_needed`).
    """
    require_content(source / MANIFEST, work.params.pairs.source_sha256, "pairs.source_sha256")
    pairs, schedule, params = load_pairs(source), work.params.schedule, work.params
    where, (channels, height, width) = f"params.yaml: pairs.source = {source}", teacher.latent_size
    wanted = (schedule.student_steps + 1, channels, params.video.frames, height, width)
    found = tuple(pairs.states[torch.tensor([0])].shape[1:])
    if found[1:] != wanted[1:]:
        axes = "(states, channels, frames, height, width)"
        raise UserError(f"{where}: has trajectories {found} {axes}, the experiment's are {wanted}; name other pairs")
    levels = student_sigmas(schedule)
    same = (levels[:, None] - pairs.sigmas).abs() < SAME_LEVEL  # (ours, theirs)
    own = bool(same.any(dim=1).all())
    if not own:
        require_levels(params, pairs.sigmas, levels_needed(params, params.init.regresses_pairs), where)
    if len(pairs.states) != params.pairs.count:
        raise UserError(
            f"params.yaml: pairs.count = {params.pairs.count}: {source} holds {len(pairs.states)}; give that number"
        )
    manifest = read_manifest(source, "pairs")
    said = facts(source, manifest, _Facts)
    read = same.int().argmax(dim=1) if own else torch.arange(len(pairs.sigmas))
    assert said.shard is not None  # load_pairs has checked that they are stored
    for name in manifest["files"]:
        (work.folder / name).unlink(missing_ok=True)  # left by an interrupted start
        if len(read) < len(pairs.sigmas) and name != CAPTIONS:
            continue
        try:
            os.link(source / name, work.folder / name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source / name, work.folder / name)
    for index in range(-(-said.count // said.shard)) if len(read) < len(pairs.sigmas) else ():
        held = read_shard(shard_path(source, index))
        held[STATES] = held[STATES][:, read]
        write_shard(shard_path(work.folder, index), held, {"first": str(index * said.shard)})
    _write_figures(work, workspace, seed, load_shard(work.folder, 0))
    sigmas = pairs.sigmas[read] if not own else levels
    clips = {CLIPS: True} if said.clips else {}
    work.finish("pairs", count=said.count, shard=said.shard, sigmas=sigmas.tolist(), source=source.name, **clips)


def levels_needed(params: Params, every: bool) -> int:
    """How many of the student's levels, from the first on, pairs must have: ``every`` one, or what forward-KL needs.

    Forward-KL evaluates the student at the first K, and steps along the trajectory from there, to states at any levels.
    """
    kl = [params.variant(name).forward_kl for name in params.compare.distill]
    steps = [one.steps for one in kl if one is not None]
    return params.schedule.student_steps + 1 if every else max(steps, default=0)


def require_levels(params: Params, sigmas: Tensor, count: int, where: str) -> None:
    """Raise UserError, naming ``where``, unless pairs' first ``count`` levels are the student's and more follow."""
    levels = student_sigmas(params.schedule)
    same = len(sigmas) > min(count, len(levels) - 1)
    if not (same and torch.allclose(sigmas[:count], levels[:count], rtol=0, atol=SAME_LEVEL)):
        theirs, ours = (", ".join(f"{sigma:.6g}" for sigma in one.tolist()) for one in (sigmas, levels))
        remedy = "change schedule.student_shift or student_levels, or name other pairs"
        raise UserError(f"{where}: its levels are {theirs}, the student's {ours}; {remedy}")


def _make_shards(work: Stage, teacher: Generator, seed: int, captions: Sequence[str]) -> None:
    """Make the missing shards. They are dealt to the processes, which work in rounds of one batch each.

    None waits for another much longer than a step of the solver takes, and all stop after the first error.
    """
    params, ranks, spec = work.params, work.ranks, work.params.pairs
    own = {
        index: range(index * spec.shard, min((index + 1) * spec.shard, spec.count))
        for index in range(ranks.rank, -(-spec.count // spec.shard), ranks.size)
    }
    missing = [index for index in own if not is_whole(shard_path(work.folder, index))]
    turns = [
        (index, own[index][first : first + spec.batch])
        for index in missing
        for first in range(0, len(own[index]), spec.batch)
    ]
    most = int(ranks.gather(torch.tensor(len(turns), device=ranks.device)).max())
    begun = ranks.sums([sum(len(numbers) for index, numbers in own.items() if index not in missing)])[0]
    with ranks.agreed():
        size = (params.schedule.student_steps + 1) * params.video.frames * math.prod(teacher.latent_size)
        require_room(work.folder, int(spec.count - begun) * size * KEPT_IN[spec.kept_in].itemsize)
    made: list[Tensor] = []

    def make(turn: int, advance: Callable[[int], None]) -> None:
        if turn >= len(turns):
            return
        index, batch = turns[turn]
        states = solve(params, teacher, seed, batch, captions[batch.start : batch.stop], lambda: advance(0))
        check_states(states, batch)
        made.append(states)
        if batch.stop == own[index].stop:
            placed = {"first": str(own[index].start)}
            with writing(work.folder):
                write_shard(shard_path(work.folder, index), {STATES: torch.cat(made)}, placed)
            made.clear()
        advance(len(batch))

    with Progress("pairs", spec.count, int(begun)) if ranks.leads else nullcontext() as progress:
        heard = progress.advance if progress else lambda count: None
        for turn in range(most):
            ranks.together(partial(make, turn), heard)


@torch.no_grad()
def solve(
    params: Params,
    teacher: Generator,
    seed: int,
    numbers: Sequence[int],
    captions: Sequence[str],
    beat: Callable[[], None] = lambda: None,
) -> Tensor:
    """Trajectories ``numbers``, of these captions, at the student's levels, (len(numbers), S + 1, C, F, h, w).

    beat: called after each step of the solver.
    Each depends on its number alone, not on the batch. They are solved in the teacher's type and returned in the one
    that ``pairs.kept_in`` names.
    """
    schedule, substeps = params.schedule, params.pairs.solver_steps // params.schedule.student_steps
    sigmas = solver_sigmas(student_sigmas(schedule), substeps, schedule.teacher_shift)
    channels, height, width = teacher.latent_size
    shape = (channels, params.video.frames, height, width)
    noise = normals("pairs noise", seed, numbers, shape)
    text = teacher.embed(captions)
    no_text = teacher.embed_nothing().expand_as(text)
    with teacher.autocast():
        states = ode_states(teacher.denoiser, noise.to(text), sigmas, text, no_text, params.pairs.guidance)
        kept = []
        for step, state in enumerate(states):
            beat()
            kept += [state] if step % substeps == 0 else []
        return torch.stack(kept, dim=1).to(KEPT_IN[params.pairs.kept_in]).cpu()


def check_states(states: Tensor, numbers: Sequence[int], field: str = "pairs") -> None:
    """Raise UserError naming the first of trajectories ``numbers`` that is not finite; ``field``: their parameters."""
    for number, trajectory in zip(numbers, states, strict=True):
        for step, state in enumerate(trajectory):
            if not state.isfinite().all():
                raise UserError(
                    f"{field}: trajectory {number}: its state after {step} steps is not finite; lower "
                    f"{field}.guidance or raise {field}.solver_steps, or train another teacher"
                )


def pair_captions(params: Params, seed: int, numbers: range) -> list[str]:
    """The captions of trajectories ``numbers``."""
    first = FIRST_CLIP["pairs"] + numbers.start
    return open_world(params.world).prompts(seed=seed, first=first, count=len(numbers))


class _Facts(Facts):
    count: Count
    shard: Count | None  # null: no trajectories are stored
    sigmas: list[float]
    clips: bool = False


def load_facts(folder: Path) -> tuple[int | None, Tensor, list[str]]:
    """The number of shards in a pairs folder (None: it stores none), the levels (S + 1,) and the captions."""
    said = facts(folder, read_manifest(folder, "pairs"), _Facts)
    lines = split_lines((folder / CAPTIONS).read_text(encoding="utf-8"))
    if len(lines) != said.count:
        raise UserError(f"{folder}: holds {len(lines)} captions, not {said.count}; run the pairs stage again")
    shards = None if said.shard is None else -(-said.count // said.shard)
    return shards, torch.tensor(said.sigmas), lines


def load_pairs(folder: Path) -> Trajectories:
    """The trajectories of a pairs folder, checked. Raises UserError naming the shard that is missing or broken."""
    shards, sigmas, captions = load_facts(folder)
    if shards is None:
        raise UserError(f"{folder}: stores no trajectories; write pairs.stored: true and run the pairs stage again")
    manifest = load_manifest(folder)
    checked = all(shard_path(folder, index).name in manifest["files"] for index in range(shards))
    states = StoredRows(folder, STATES, shards=shards, checked=checked)
    if len(states) != len(captions):
        raise UserError(f"{folder}: holds {len(states)} trajectories, not {len(captions)}; run the pairs stage again")
    clips = StoredRows(folder, CLIPS, shards=shards, checked=checked) if manifest.get(CLIPS) else None
    return Trajectories(states, sigmas, captions, clips)


def load_shard(folder: Path, index: int) -> Tensor:
    """The trajectories of one shard, (n, S + 1, C, F, h, w). Raises UserError when it is missing or broken."""
    return read_shard(shard_path(folder, index))[STATES]

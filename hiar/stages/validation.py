"""Validation while a student trains: videos of a few prompts of its own, made with the weights to keep, are scored.

It does not influence the training: its videos have numbers of their own, which determine their noise, so that weights
are the same bits with and without it. In the artifact, ``validation/scores.jsonl`` has one line per validation, and
``best/`` is the checkpoint of the best one. A training that resumes after a kill continues both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from hiar import config
from hiar.errors import UserError, suggest
from hiar.io.artifacts import write_manifest
from hiar.io.files import json_line, remove, write_text
from hiar.io.names import video_name
from hiar.io.video import write_parts
from hiar.judges.interface import Judge, open_judge
from hiar.metrics.summary import summarise
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator
from hiar.report.columns import METRICS
from hiar.stages.common import Stage, sample_world
from hiar.stages.looking import look_through
from hiar.stages.rollouts import DEFAULT_WALK
from hiar.stages.sample import sample_latents
from hiar.stages.videos import decoded
from hiar.statistics.validations import BOTH_WAYS, SCORES, Validated, read_validations
from hiar.training.parallel import deal
from hiar.training.role import Role, kept, kept_weights
from hiar.worlds.interface import FIRST_CLIP

BEST = "best"
HIGHER = {metric.key: metric.better == "higher" for metric in METRICS if metric.better}


@dataclass(frozen=True)
class _Job:
    """source: the student as its checkpoint will be; its denoiser's weights are not used and may be overwritten."""

    work: Stage
    settings: config.Validation
    source: Generator
    role: Role
    judge: Judge
    steps: int


def validation(
    work: Stage, settings: config.Validation | None, source: Generator, role: Role, steps: int
) -> Callable[[int], None]:
    """The function to call after each of ``steps``, with the number of steps done; a no-op without ``settings``.

    source: text, codec and card of the student whose ``role`` is trained; saving the best overwrites its denoiser.
    Raises UserError for a metric without a better direction, and if processes cannot share the prompts equally.
    """
    params = work.params
    if settings is None:
        return lambda done: None
    judge = open_judge(params.world, params.score, *source.block_pictures)
    known = [name for name in judge.columns if name in HIGHER]
    if settings.metric not in known:
        raise UserError(
            f"params.yaml: {work.name}.validation.metric = {settings.metric!r}: is not a metric of the "
            f"{judge.name} of which higher or lower values are better; {suggest(settings.metric, known)}"
        )
    deal(settings.prompts, None, work.ranks)
    return partial(_validate, _Job(work, settings, source, role, judge, steps))


def _validate(job: _Job, done: int) -> None:
    """If a validation is due: sample, score, record the metrics, and keep the weights if they are the best so far."""
    if done % job.settings.every and done != job.steps:
        return
    work, metric = job.work, job.settings.metric
    source = replace(job.source, denoiser=cast(Denoiser, kept(job.role)))
    metrics = _means(job, _measure(job, source, job.settings.frames, done))
    if job.settings.bidirectional:
        frames = source.card.video.frames
        video = source.card.video.model_copy(update={"block": frames, "window": frames, "sink_blocks": 0})
        whole = replace(source, card=source.card.model_copy(update={"video": video}))
        metrics |= {BOTH_WAYS + name: mean for name, mean in _means(job, _measure(job, whole, frames)).items()}
    earlier = [one for one in read_validations(work.folder) if one.step < done]
    best = all(_goodness(metrics, metric) > _goodness(one.metrics, metric) for one in earlier)
    if work.ranks.told(best):
        _keep(job, done, metrics)
    if work.ranks.leads:
        lines = [vars(one) for one in (*earlier, Validated(done, metrics))]
        write_text(work.folder / SCORES, "".join(map(json_line, lines)))
        shown = {name: mean for name, mean in metrics.items() if name.removeprefix(BOTH_WAYS) in job.judge.columns}
        work.run.log(done, {f"validation/{name}": mean for name, mean in shown.items()})


def _goodness(metrics: Mapping[str, float], metric: str) -> float:
    """A metric, or its negative, so that higher is better; -inf if no video has it."""
    return metrics[metric] * (1 if HIGHER[metric] else -1) if metric in metrics else -math.inf


def _measure(job: _Job, source: Generator, frames: int, shown_at: int | None = None) -> dict[str, Tensor]:
    """Metrics (prompts of this process,) of videos of ``frames`` latent frames; ``shown_at``: log some at this step."""
    work, params = job.work, job.work.params
    [own] = deal(job.settings.prompts, None, work.ranks)
    first = FIRST_CLIP["validation"]
    prompts = sample_world(params).prompts(seed=work.facts["seed"], first=first, count=job.settings.prompts)
    walk, found = source.card.walk or DEFAULT_WALK, []
    for start in range(own.start, own.stop, params.sample.batch):
        chosen = range(start, min(start + params.sample.batch, own.stop))
        texts, numbers = [prompts[i] for i in chosen], range(first + chosen.start, first + chosen.stop)
        with work.accelerator.autocast():
            latents = sample_latents(source, texts, frames, walk, work.facts["seed"], numbers)
        for number, latent, text in zip(chosen, latents, texts, strict=True):
            parts = list(decoded(source, latent, number))
            (findings,), _ = look_through((part[None] for part in parts), [job.judge], [text])
            found.append(job.judge.measure(findings))
            if shown_at is not None and work.ranks.leads and number < params.report.videos:
                _show(job, parts, shown_at, number)
    return {name: torch.cat([one[name] for one in found]).double() for name in found[0]}


def _means(job: _Job, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each metric over the videos of all processes, in the order of prompts, that have a finite value."""
    own = torch.stack(list(values.values())).to(job.work.ranks.device)
    together = job.work.ranks.gather(own).transpose(0, 1).flatten(1).cpu()
    defined = {name: row[row.isfinite()] for name, row in zip(values, together, strict=True)}
    return {name: summarise(row)["mean"] for name, row in defined.items() if len(row)}


def _show(job: _Job, parts: Sequence[Tensor], done: int, number: int) -> None:
    """Log a video with the run; it is not part of the artifact."""
    job.work.training.mkdir(exist_ok=True)
    path = job.work.training / f"validation-{done:06d}-{video_name(number, job.settings.prompts)}"
    write_parts(path, parts, job.source.world.frames_per_second)
    job.work.run.artifact(path)
    remove(path)


def _keep(job: _Job, done: int, metrics: Mapping[str, float]) -> None:
    """Make ``best/`` the checkpoint of the current weights; all processes call this together."""
    weights, work = kept_weights(job.role), job.work
    if not work.ranks.leads:
        return
    fresh = work.training / BEST
    remove(fresh)
    fresh.mkdir(parents=True)
    job.source.denoiser.load_state_dict(weights)
    job.source.save(fresh)
    facts = {"updates": done, "metric": job.settings.metric, "value": metrics.get(job.settings.metric)}
    write_manifest(fresh, "checkpoint", parents=work.parents, settings=work.settings, **work.facts, **facts)
    remove(work.folder / BEST)
    fresh.rename(work.folder / BEST)

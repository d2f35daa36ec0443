"""Stage distill: self-rollout distillation of one variant, from the causal init."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hiar.config import Params
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator, Walk, clone, load_generator
from hiar.noise import generator
from hiar.stages.common import FIRST_CLIP, Paths, stage, tail_mean, write_curve, write_metrics
from hiar.stages.pairs import load_pairs
from hiar.training.loop import Metrics, train
from hiar.training.role import kept, make_role
from hiar.training.self_rollout import Distillation, critic_step, self_rollout, student_step
from hiar.world.captions import captions


def run(params: Params, workspace: Path, seed: int, variant: str) -> None:
    """Write artifacts/seed-S/distill/VARIANT; its metrics are means over the last tenth of training."""
    paths, method = Paths(workspace, seed), params.variant(variant)
    settings = [params.world, params.video, params.schedule, params.teacher, params.distill, method]
    parents = {
        "teacher": (paths.teacher, "checkpoint"),
        "pairs": (paths.pairs, "pairs"),
        "init": (paths.init, "checkpoint"),
    }
    out = paths.distilled(variant)
    with stage(
        "distill", params, workspace, out, seed=seed, settings=settings, parents=parents, variant=variant
    ) as work:
        spec, device = params.distill, work.accelerator.device
        teacher, init = load_generator(paths.teacher).to(device), load_generator(paths.init).to(device)
        warmup = -(-spec.critic_warmup // spec.critic_updates)  # steps before the student learns
        steps = warmup + spec.steps
        job = Distillation(
            student=make_role(clone(init.denoiser), spec.generator, spec.steps),
            critic=make_role(clone(teacher.denoiser), spec.critic, steps * spec.critic_updates),
            teacher=teacher.denoiser,
            no_text=teacher.embed([""]),
            block_shape=init.block_shape,
            settings=spec,
            variant=method,
            video=params.video,
            schedule=params.schedule,
            sigma_floor=params.teacher.sigma_floor,
            accelerator=work.accelerator,
        )
        pairs = load_pairs(paths.pairs) if method.forward_kl else None
        pair_text = teacher.embed(pairs.captions) if pairs else None
        replay: dict[str, Tensor] = {}

        def train_step(step: int) -> Metrics:
            random = generator(seed, "distill", step)
            # Samples are numbered apart from those of the comparison: no noise trains a student that it tests.
            first = FIRST_CLIP["distill"] + step * spec.batch
            samples = range(first, first + spec.batch)
            prompts = captions(params.world, seed=seed, first=first, count=spec.batch)
            text = teacher.embed(prompts)
            exit_step = int(torch.randint(params.schedule.student_steps, (), generator=random))
            learns = step >= warmup
            windows = self_rollout(job, text, seed, samples, exit_step, learns)
            text = text.repeat_interleave(spec.windows, dim=0)
            metrics: Metrics = {}
            if learns:
                batch = None
                if pairs is not None and pair_text is not None:
                    # A stream of its own: with or without the regulariser, a variant sees the same prompts and noise.
                    chosen = torch.randint(
                        len(pairs.states), (spec.batch,), generator=generator(seed, "forward-kl", step)
                    )
                    batch = (pairs.states[chosen].to(device), pairs.sigmas.to(device), pair_text[chosen.to(device)])
                metrics |= student_step(job, windows, text, batch, random, step - warmup)
            remember(replay, windows.detach(), text, spec.replay * len(windows))
            for turn in range(spec.critic_updates):
                chosen = torch.randint(len(replay["windows"]), (spec.critic_batch,), generator=random)
                number = step * spec.critic_updates + turn
                metrics |= critic_step(job, replay["windows"][chosen], replay["text"][chosen], random, number)
            return metrics

        curve = train(
            f"distill {variant}",
            steps,
            train_step,
            {"student": job.student, "critic": job.critic},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
            memory=replay,
        )
        walk = Walk(order=method.order, context=method.context)
        card = init.card.model_copy(update={"stage": "distill", "variant": variant, "walk": walk})
        averaged = cast(Denoiser, kept(job.student))
        Generator(card, averaged, init.text, init.codec).save(work.folder)
        columns = [name for name in curve[-1] if name != "step"]
        write_metrics(workspace, f"seed-{seed}/distill/{variant}", {name: tail_mean(curve, name) for name in columns})
        write_curve(workspace, f"seed-{seed}/distill/{variant}", curve)
        work.finish("checkpoint")


def remember(replay: dict[str, Tensor], windows: Tensor, text: Tensor, size: int) -> None:
    """Add the newest windows and their text to the replay, and forget the oldest beyond ``size``."""
    for name, new in (("windows", windows), ("text", text)):
        kept = [replay[name].to(new), new] if name in replay else [new]
        replay[name] = torch.cat(kept)[-size:]

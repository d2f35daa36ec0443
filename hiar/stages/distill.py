"""Stage distill: self-rollout distillation of one variant, from the causal init."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Distill, Params, Variant
from hiar.errors import UserError
from hiar.io.fingerprints import require_content
from hiar.models.card import walk_of
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator, clone, load_generator
from hiar.stages.cards import trained_card
from hiar.stages.common import Paths, Stage, stage, tail_mean, write_curve, write_metrics
from hiar.stages.pairs import Trajectories, levels_needed, require_levels
from hiar.stages.roles import new_role
from hiar.stages.solved_pairs import open_pairs
from hiar.stages.validation import validation
from hiar.training.clips import begins_apart
from hiar.training.diffusion_forcing import Pairs
from hiar.training.distillation import Distillation, check_batches, distillation_step
from hiar.training.loop import train
from hiar.training.parallel import shard
from hiar.training.role import kept_weights
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.interface import AHEAD, FIRST_CLIP, SPLIT, TRANSFORMER


def run(params: Params, workspace: Path, seed: int, variant: str, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/distill/VARIANT; its metrics are means over the last tenth of training."""
    paths, method, spec = Paths(workspace, seed), params.variant(variant), params.distill
    parents = {
        "teacher": (paths.teacher, "checkpoint"),
        "pairs": (paths.pairs, "pairs"),
        "init": (paths.init, "checkpoint"),
    }
    with stage(
        "distill",
        params,
        workspace,
        paths.distilled(variant),
        seed=seed,
        parents=parents,
        variant=variant,
        restart=restart_from,
        shared=True,
    ) as work:
        check_batches(spec, work.ranks)
        teacher, init = load_generator(paths.teacher), load_generator(paths.init)
        job = _distillation(work, paths, method, teacher, init)
        card = trained_card(init.card, params, stage="distill", variant=variant, walk=walk_of(method))
        sampled = Generator(card, init.denoiser, teacher.text, teacher.codec)
        curve = train(
            f"distill {variant}",
            spec.all_steps,
            partial(distillation_step, job),
            {"student": job.student, "critic": job.critic},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
            checkpoints_kept=params.runtime.checkpoints_kept,
            checkpoint_milestone=params.runtime.checkpoint_milestone,
            memory=job.replay,
            ranks=work.ranks,
            after_step=validation(work, spec.validation, sampled, job.student, spec.all_steps),
        )
        weights = kept_weights(job.student)
        if not work.ranks.leads:
            return
        init.denoiser.load_state_dict(weights)
        Generator(card, init.denoiser, init.text, init.codec).save(work.folder)
        columns = [name for name in curve[-1] if name != "step"]
        write_metrics(workspace, f"seed-{seed}/distill/{variant}", {name: tail_mean(curve, name) for name in columns})
        write_curve(workspace, f"seed-{seed}/distill/{variant}", curve)
        work.finish("checkpoint")


def _distillation(work: Stage, paths: Paths, method: Variant, teacher: Generator, init: Generator) -> Distillation:
    """The networks of a variant's distillation, and the data they learn from.

    Prompts of the pairs are embedded before other networks are on the device: the text encoder may be as large.
    """
    params, spec, device = work.params, work.params.distill, work.accelerator.device
    saving = params.runtime.checkpointing
    teacher.text.to(device)
    pairs = open_pairs(params, paths.workspace, paths.seed, device) if method.forward_kl or method.forcing else None
    if pairs is not None:
        require_levels(params, pairs.sigmas, levels_needed(params, every=False), str(paths.pairs))
        teacher.prepare(pairs.captions)
    if spec.validation is not None or (spec.windows > 1 and begins_apart(teacher.codec)):
        teacher.codec.to(device)
    if spec.real_score is None:
        teacher.denoiser.to(device)  # otherwise only its copy, the critic, is used
    critic = clone(teacher.denoiser).checkpoint(saving).to(device)  # copied before it may be sharded as the real score
    real_score = _real_score(work, teacher)
    return Distillation(
        student=new_role(work, clone(init.denoiser).checkpoint(saving).to(device), spec.generator, spec.steps),
        critic=new_role(work, critic, spec.critic, spec.all_steps * spec.critic_updates),
        teacher=real_score,
        roll_out=SelfRollout(
            block_shape=init.block_shape,
            windows=spec.windows,
            variant=method,
            video=params.video,
            schedule=params.schedule,
            conventions=params.conventions,
        ),
        codec=teacher.codec,
        settings=spec,
        prompts=Prompts(teacher, paths.seed, spec),
        no_text=teacher.embed_nothing(),
        student_samples=FIRST_CLIP["distill"],
        critic_samples=FIRST_CLIP["critic"],
        pairs=_embedded(pairs, teacher) if pairs else None,
        seed=paths.seed,
        accelerator=work.accelerator,
        ranks=work.ranks,
    )


class Prompts:
    """Embeddings (B, words, dim) of samples' prompts, computed many samples ahead.

    An encoder as large as the trained networks, such as Wan's, is loaded and freed once per `AHEAD` samples, by all
    processes in the same step.
    """

    def __init__(self, teacher: Generator, seed: int, settings: Distill) -> None:
        self.teacher, self.seed = teacher, seed
        of_each = {"distill": settings.all_steps * settings.batch, "critic": settings.critic_rollouts}
        self.ends = {FIRST_CLIP[purpose]: FIRST_CLIP[purpose] + count for purpose, count in of_each.items()}
        self.known: set[int] = set()

    def __call__(self, samples: range) -> Tensor:
        if self.teacher.world.base is not None:
            for turn in range(samples.start // AHEAD, -(-samples.stop // AHEAD)):
                if turn not in self.known:
                    self._prepare(turn * AHEAD)
                    self.known.add(turn)
        return self.teacher.embed(self._texts(samples.start, samples.stop))

    def _prepare(self, first: int) -> None:
        end = next(end for start, end in self.ends.items() if start == first // SPLIT * SPLIT)
        self.teacher.prepare(self._texts(first, min(first + AHEAD, end)))

    def _texts(self, first: int, stop: int) -> list[str]:
        return self.teacher.world.prompts(seed=self.seed, first=first, count=stop - first)


def _real_score(work: Stage, teacher: Generator) -> Denoiser:
    """The frozen real-score network, the teacher's or a larger one: whole on the device, or sharded."""
    spec, runtime, ranks = work.params.distill, work.params.runtime, work.ranks
    if spec.real_score is None:
        dtype, network = None, teacher.denoiser
    else:
        dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        # If sharded, it is read from its file layer by layer: no process and no GPU has to hold its 57 GB as a whole.
        network = _load_real_score(
            teacher, spec.real_score, spec.real_score_sha256, dtype if ranks.mesh is None else None
        )
    if ranks.mesh is None:
        return network.to(work.accelerator.device)
    shard(network, ranks, offload="real_score" in runtime.offload, dtype=dtype)
    return network


def _load_real_score(teacher: Generator, folder: Path, content: str | None, dtype: torch.dtype | None) -> Denoiser:
    """The frozen denoiser of a model's folder, in ``dtype``; None: in the type that it is stored in.

    Raises UserError if its latents or text differ from the teacher's, or it does not have the hash ``content``.
    """
    require_content(folder / TRANSFORMER, content, "distill.real_score_sha256")
    transformer = teacher.world.load_transformer(folder / TRANSFORMER, dtype)
    for field in ("in_channels", "out_channels", "text_dim", "patch_size"):
        found, wanted = transformer.config[field], teacher.denoiser.transformer.config[field]
        if found != wanted:
            raise UserError(
                f"params.yaml: distill.real_score = {folder}: {field} = {found}, the teacher's is {wanted}; "
                "name a model of the same latents and text"
            )
    card = teacher.card
    return Denoiser(transformer, card.prediction, card.coordinates).eval().requires_grad_(False)


def _embedded(pairs: Trajectories, teacher: Generator) -> Pairs:
    # Embedded batch by batch: the embeddings of all pairs would fill a GPU.
    return Pairs(
        pairs.states,
        pairs.sigmas,
        lambda chosen: teacher.embed([pairs.captions[i] for i in chosen]),
        pairs.clips,
    )

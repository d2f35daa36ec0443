"""Disk space of an experiment's artifacts, from params.yaml and configurations alone."""

from __future__ import annotations

import math
from pathlib import Path

from hiar import config
from hiar.memory.counting import storage_bytes
from hiar.memory.networks import Models, meta_role, role_bytes


def disk(models: Models) -> dict[str, int]:
    """Bytes on disk of the artifacts of one seed, and of the states of a distillation that is under way.

    Imported pairs that are not on this machine are counted as if they were made by the experiment.
    A kept state is deleted only when a newer one is complete; milestones stay until the end, as do an init's
    trajectories of a causal teacher.
    """
    params, clip = models.sizes.params, math.prod(models.sizes.clips(1)) * 4
    frame = clip // params.video.frames
    weights = storage_bytes(models.trained().state_dict())  # positions, which are buffers, are not stored
    trajectory = (params.schedule.student_steps + 1) * clip
    made = params.pairs.count * (trajectory if params.pairs.kept_in is None else trajectory // 2)
    pairs = _shards(params.pairs.source) or made if params.pairs.stored else 0
    causal = params.init.pairs if isinstance(params.init, config.CausalOde) else None
    trained, runtime = models.world.base is None, params.runtime
    milestones = params.distill.all_steps // runtime.checkpoint_milestone if runtime.checkpoint_milestone else 0
    states = [
        sum(bytes_ for what, bytes_ in role_bytes(meta_role(models, settings)).items() if what != "gradients")
        for settings in (params.distill.generator, params.distill.critic)
    ]
    return {
        "codec": models.codec if trained else 0,
        "teacher": weights + models.codec + models.text if trained else 0,
        "pairs": pairs,
        "init": weights,
        "trajectories of an init": causal.count * trajectory if causal else 0,
        "distill": weights * len(params.compare.distill),
        "states of a training": sum(states) * (runtime.checkpoints_kept + 1 + milestones),
        "samples": params.sample.videos * (clip + len(params.compare.students) * params.sample.frames * frame),
    }


def _shards(source: Path | None) -> int:
    """Bytes of a folder's shards; 0 if there are none."""
    return sum(shard.stat().st_size for shard in source.glob("*.safetensors")) if source else 0

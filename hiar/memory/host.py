"""Host memory of a training stage, per process, besides what `runtime.offload` puts there."""

from __future__ import annotations

from hiar import config
from hiar.memory.counting import network_bytes
from hiar.memory.networks import Models, make_meta, meta_role, role_bytes

STATE = "a state until it is written"
RESULT = "the student at the end"


def host(models: Models, stage: str, gpus: int) -> dict[str, int]:
    """Bytes by kind; a state and the student at the end, which is whole, are never in memory together.

    Networks that are copied to the GPU for training also stay where they were loaded, as does the teacher if another
    network is the real score. The real score itself is read from its file block by block, or has left the host before
    there is a state.
    """
    params = models.sizes.params
    whole = network_bytes(make_meta(params, models.student, half=False))
    trainings: list[config.Optimizer]
    if stage == "init":
        held = {"teacher": whole}
        trainings = [one.optimizer for one in params.init.trainings.values()][-1:]
    else:
        held = {"init": whole} | ({} if params.distill.real_score is None else {"teacher": whole})
        trainings = [params.distill.generator, params.distill.critic]
    roles = [role_bytes(meta_role(models, one)) for one in trainings]
    state = sum(size for role in roles for what, size in role.items() if what != "gradients")
    return held | {STATE: -(-state // gpus), RESULT: whole}


def most(parts: dict[str, int]) -> int:
    """The most bytes of `host` at the same time."""
    return sum(parts.values()) - min(parts[STATE], parts[RESULT])

"""What a training stage takes of the host's memory beside what `runtime.offload` puts there, of each process."""

from __future__ import annotations

from hiar import config
from hiar.memory.counting import network_bytes
from hiar.memory.forecast import Models, make_meta, meta_role, role_bytes

LOADED = "the real score while it is loaded"
STATE = "a state until it is written"


def host(models: Models, stage: str, gpus: int) -> dict[str, int]:
    """Bytes by what they are. Where a real score is loaded and where a state is written are never at the same time.

    Networks that are copied to the GPU to be trained stay where they were read, and so does a teacher whose place
    another real score has. Each process reads all of a network before it keeps its part.
    """
    params = models.sizes.params
    whole = network_bytes(make_meta(params, models.student, half=False))
    trainings: list[config.Optimizer]
    if stage == "init":
        held = {"teacher": whole}
        trainings = [one.optimizer for one in params.init.trainings.values()][-1:]
    else:
        apart = params.distill.real_score is not None
        held = {"init": whole} | ({"teacher": whole} if apart else {})
        held |= {LOADED: network_bytes(make_meta(params, models.real, half=True))} if apart else {}
        trainings = [params.distill.generator, params.distill.critic]
    roles = [role_bytes(meta_role(models, one)) for one in trainings]
    state = sum(size for role in roles for what, size in role.items() if what != "gradients")
    return held | {STATE: -(-state // gpus)}


def most(parts: dict[str, int]) -> int:
    """The most bytes of `host` at a time."""
    either = [parts.get(LOADED, 0), parts[STATE]]
    return sum(parts.values()) - min(either)

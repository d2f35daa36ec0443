"""The solver of Wan's teacher: UniPC, as in its published pipeline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from hiar.schedule import TIMESTEP_SCALE


@torch.no_grad()
def unipc(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float) -> Tensor:
    """Clean latents from ``noise`` (B, C, F, H, W), along a velocity that takes a state and its noise level ().

    The levels are the pipeline's: the scheduler's timesteps, whole thousandths, and not its sigmas.
    """
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise
    for timestep in scheduler.timesteps:
        (x,) = scheduler.step(velocity(x, timestep / TIMESTEP_SCALE), timestep, x, return_dict=False)
    return x

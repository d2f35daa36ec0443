"""How Wan's teacher is sampled: UniPC, as its published pipeline does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from hiar.schedule import TIMESTEP_SCALE


@torch.no_grad()
def unipc(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float) -> Tensor:
    """From ``noise`` (B, C, F, H, W) to clean latents along a velocity, given a state and its noise level ().

    The levels are those of the pipeline: its timesteps are whole numbers of thousandths, its own sigmas are not.
    """
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise
    for timestep in scheduler.timesteps:
        (x,) = scheduler.step(velocity(x, timestep / TIMESTEP_SCALE), timestep, x, return_dict=False)
    return x

"""DMD and the critic's loss equal those of Self-Forcing's training code on the same networks, noise and levels.

``SELF_FORCING_CODE`` names a checkout of it; its formulas are also written out here, which needs no checkout.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import relative_error, tiny_denoiser
from torch import Tensor

from hiar.losses.dmd import dmd_loss, score_difference
from hiar.losses.flow import flow_matching
from hiar.models.attention import Bidirectional
from hiar.models.denoiser import Denoiser

CODE = os.environ.get("SELF_FORCING_CODE")
SHIFT, GUIDANCE = 5.0, 3.0  # in its notation, where 0 means no guidance
STEPS = torch.tensor([880.0, 137.0])  # of its 1000, one for each video, before the shift
LEVELS = SHIFT * STEPS / 1000 / (1 + (SHIFT - 1) * STEPS / 1000)
FRAMES = 3
SIDES = ["formulas", "code"]


class Score:
    """A network as its losses call it: clips (B, F, C, H, W), a time step per frame; returns (None, x0)."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network

    def __call__(self, noisy_image_or_video: Tensor, conditional_dict: dict[str, Tensor], timestep: Tensor) -> Any:
        x, text = noisy_image_or_video.transpose(1, 2), conditional_dict["text"]
        return None, self.network(x, timestep[:, 0] / 1000, text, Bidirectional()).transpose(1, 2)


@pytest.fixture(scope="module")
def code() -> dict[str, Any]:
    """The modules of Self-Forcing's code that the losses need, without its packages' other imports."""
    if CODE is None:
        pytest.skip("SELF_FORCING_CODE names no checkout of Self-Forcing")
    packages = {
        name: {"__path__": [str(Path(CODE, *name.split(".")))]} for name in ("model", "utils", "wan", "wan.modules")
    }
    unused = {"pipeline": {"SelfForcingTrainingPipeline": None}, "model.base": {"SelfForcingModel": object}}
    for name, content in (packages | unused).items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        modules = ("model.dmd", "utils.scheduler", "utils.loss", "utils.wan_wrapper")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "current_device", lambda: 0)  # called when its text encoder is imported
            return {name: importlib.import_module(name) for name in modules}
    except ModuleNotFoundError as error:
        pytest.skip(f"Self-Forcing's code needs {error.name}, which is not installed here")


def dmd_job(code: dict[str, Any], real: Denoiser, fake: Denoiser, generated: Tensor) -> SimpleNamespace:
    """The attributes that the methods of Self-Forcing's DMD class read; levels and rollout are fixed, not drawn."""
    scheduler = code["utils.scheduler"].FlowMatchScheduler(shift=SHIFT, sigma_min=0.0, extra_one_step=True)
    scheduler.set_timesteps(1000, training=True)
    scheduler.alphas_cumprod = None
    job = SimpleNamespace(
        real_score=Score(real),
        fake_score=Score(fake),
        scheduler=scheduler,
        real_guidance_scale=GUIDANCE,
        fake_guidance_scale=0.0,
        ts_schedule=False,
        ts_schedule_max=False,
        min_score_timestep=0,
        num_train_timestep=1000,
        min_step=20,
        max_step=980,
        timestep_shift=SHIFT,
        num_frame_per_block=3,
        args=SimpleNamespace(denoising_loss_type="flow"),
        denoising_loss_func=code["utils.loss"].get_denoising_loss("flow")(),
        _get_timestep=lambda *_, **__: STEPS[:, None].repeat(1, FRAMES),
        _run_generator=lambda **_: (generated, None, None, None),
    )
    kl_gradient = code["model.dmd"].DMD._compute_kl_grad
    job._compute_kl_grad = lambda **given: kl_gradient(job, **given)
    return job


def networks() -> tuple[Denoiser, Denoiser, Tensor, Tensor, Tensor]:
    """Real score, fake score, generated clips (B, F, C, H, W), text and no text."""
    random = torch.Generator().manual_seed(3)
    clips, text, no_text = (
        torch.randn(shape, generator=random) for shape in ((2, FRAMES, 3, 4, 4), (2, 5, 8), (2, 5, 8))
    )
    return tiny_denoiser(seed=1), tiny_denoiser(seed=2), clips, text, no_text


def drawn_noise(like: Tensor) -> Tensor:
    torch.manual_seed(7)
    return torch.randn_like(like)


def noised(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Clips noised to their levels, and the levels (B, 1, 1, 1, 1)."""
    level = LEVELS[:, None, None, None, None]
    return (1 - level) * clips + level * drawn_noise(clips), level


@pytest.mark.parametrize("side", SIDES)
def test_dmd_loss_and_gradient_equal_self_forcings(side: str, request: pytest.FixtureRequest) -> None:
    real, fake, clips, text, no_text = networks()
    clips.requires_grad_()
    if side == "code":
        code = request.getfixturevalue("code")
        job = dmd_job(code, real, fake, clips)
        torch.manual_seed(7)
        theirs, _ = code["model.dmd"].DMD.compute_distribution_matching_loss(
            job, clips, {"text": text}, {"text": no_text}
        )
    else:
        with torch.no_grad():
            x, _ = noised(clips)
            steps = 1000 * LEVELS[:, None].repeat(1, FRAMES)
            with_text, without = (Score(real)(x, {"text": words}, steps)[1] for words in (text, no_text))
            guided = with_text + GUIDANCE * (with_text - without)
            gradient = Score(fake)(x, {"text": text}, steps)[1] - guided
            gradient = gradient / (clips - guided).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        theirs = 0.5 * torch.nn.functional.mse_loss(clips, (clips - gradient).detach())
    (pull,) = torch.autograd.grad(theirs, clips)

    x0 = clips.detach().transpose(1, 2).requires_grad_()
    noise = drawn_noise(clips).transpose(1, 2)
    ours = dmd_loss(x0, score_difference(real, fake, x0, noise, LEVELS, text, no_text, GUIDANCE + 1))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert relative_error(torch.autograd.grad(ours, x0)[0].transpose(1, 2), pull) < 1e-5


@pytest.mark.parametrize("side", SIDES)
def test_critic_loss_and_gradient_equal_self_forcings(side: str, request: pytest.FixtureRequest) -> None:
    real, fake, clips, text, _ = networks()
    weights = list(fake.transformer.blocks.parameters())
    if side == "code":
        code = request.getfixturevalue("code")
        job = dmd_job(code, real, fake, clips)
        torch.manual_seed(7)
        theirs, _ = code["model.dmd"].DMD.critic_loss(job, clips.shape[:2], {"text": text}, {}, None)
    else:
        x, level = noised(clips)
        _, x0_hat = Score(fake)(x, {"text": text}, 1000 * LEVELS[:, None].repeat(1, FRAMES))
        theirs = ((x - x0_hat) / level - (drawn_noise(clips) - clips)).square().mean()
    pulls = torch.autograd.grad(theirs, weights)

    noise = drawn_noise(clips).transpose(1, 2)
    ours = flow_matching(fake, clips.transpose(1, 2), noise, LEVELS, text, Bidirectional(), floor=0.0)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for own, pull in zip(torch.autograd.grad(ours, weights), pulls, strict=True):
        assert (own - pull).abs().max() <= 1e-5 * max(float(one.abs().max()) for one in pulls)

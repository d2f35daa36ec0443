"""DMD on analytic scores, where the answer is known; and the form of its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiar.losses.dmd import dmd_gradient, dmd_loss, score_difference
from hiar.models.attention import Attention, Bidirectional

STEPS, BATCH = 600, 512


class Mixture:
    """A mixture of equal isotropic Gaussians in the plane, with the posterior mean of x0 at any noise level."""

    def __init__(self, means: torch.Tensor, std: float) -> None:
        self.means, self.std = means, std

    def x0(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """E[x0 | x_sigma = x], with x_sigma = (1 - sigma) x0 + sigma eps; x: (B, 2), sigma: (B, 1)."""
        a = 1 - sigma
        variance = (a * self.std) ** 2 + sigma**2
        away = x[:, None] - a[:, None] * self.means
        weight = torch.softmax(-away.square().sum(-1) / (2 * variance), dim=1)
        posterior = self.means + (a * self.std**2 / variance)[:, None] * away
        return (weight[:, :, None] * posterior).sum(1)


def distil(real: Mixture, generate, fake, parameters: list[torch.Tensor], sign: float = 1.0) -> None:  # type: ignore[no-untyped-def]
    """Train a generator with exact scores: ``generate(noise)`` -> (B, 2), ``fake()`` -> the generator's own Mixture."""
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / STEPS)
        x0 = generate(torch.randn(BATCH, 2, generator=random))
        sigma = torch.rand(BATCH, 1, generator=random) * 0.96 + 0.02
        x = (1 - sigma) * x0.detach() + sigma * torch.randn(BATCH, 2, generator=random)
        gradient = dmd_gradient(x0.detach(), fake().x0(x, sigma), real.x0(x, sigma))
        optimizer.zero_grad()
        (sign * dmd_loss(x0, gradient)).backward()
        optimizer.step()


def gaussian_run(sign: float) -> tuple[torch.Tensor, float]:
    mean, log_std = torch.tensor([-1.0, 1.5], requires_grad=True), torch.tensor(0.0, requires_grad=True)
    distil(
        Mixture(torch.tensor([[1.0, -0.5]]), 0.5),
        lambda noise: mean + log_std.exp() * noise,
        lambda: Mixture(mean.detach()[None], log_std.exp().item()),
        [mean, log_std],
        sign,
    )
    return mean.detach(), log_std.exp().item()


def test_a_gaussian_moves_onto_its_target() -> None:
    mean, std = gaussian_run(sign=1.0)
    torch.testing.assert_close(mean, torch.tensor([1.0, -0.5]), atol=0.001, rtol=0)
    assert std == pytest.approx(0.5, abs=0.001)


def test_with_the_sign_flipped_it_runs_away() -> None:
    mean, _ = gaussian_run(sign=-1.0)
    assert (mean - torch.tensor([1.0, -0.5])).norm() > 5


def test_a_mixture_is_split_between_its_modes() -> None:
    """A generator with two movable components ends with one on each mode if they start on either side."""
    means = torch.tensor([[-0.3, 0.2], [0.3, -0.2]], requires_grad=True)

    def generate(noise: torch.Tensor) -> torch.Tensor:
        return means.repeat(BATCH // 2, 1) + 0.3 * noise

    target = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    distil(Mixture(target, 0.3), generate, lambda: Mixture(means.detach(), 0.3), [means])
    torch.testing.assert_close(means.detach(), target, atol=0.1, rtol=0)


def test_particles_split_evenly_between_two_modes() -> None:
    """256 free points that start between the modes end on both, with their spread."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(256, 2, generator=random, requires_grad=True)
    target = Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.3)
    optimizer = torch.optim.Adam([points], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        sigma = torch.rand(256, 1, generator=random) * 0.96 + 0.02
        x = (1 - sigma) * points.detach() + sigma * torch.randn(256, 2, generator=random)
        fake = Mixture(points.detach(), 0.1).x0(x, sigma)
        optimizer.zero_grad()
        dmd_loss(points, dmd_gradient(points.detach(), fake, target.x0(x, sigma))).backward()
        optimizer.step()
    right = points.detach()[:, 0] > 0
    assert right.float().mean().item() == pytest.approx(0.5, abs=0.02)
    for mode, side in ((-2.0, ~right), (2.0, right)):
        torch.testing.assert_close(points.detach()[side].mean(0), torch.tensor([mode, 0.0]), atol=0.03, rtol=0)
        torch.testing.assert_close(points.detach()[side].std(0), torch.tensor([0.3, 0.3]), atol=0.03, rtol=0)


class Scaled:
    """A network with known x0: scale * sigma * x, plus the text."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, attention: Attention) -> Tensor:
        assert attention == Bidirectional()
        assert not torch.is_grad_enabled()
        return self.scale * x * sigma.view(-1, 1, 1, 1, 1) + text.view(-1, 1, 1, 1, 1)


def test_both_scores_see_the_noised_video_and_only_the_real_one_is_guided() -> None:
    random = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 2, 2, 2, generator=random)
    sigma, text, no_text = torch.tensor([0.3, 0.8]), torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    level = sigma.view(-1, 1, 1, 1, 1)
    x = (1 - level) * x0 + level * noise
    real = 0.2 * x * level + (no_text + 3.0 * (text - no_text)).view(-1, 1, 1, 1, 1)
    fake = 0.5 * x * level + text.view(-1, 1, 1, 1, 1)
    expected = (fake - real) / (x0 - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    gradient = score_difference(
        Scaled(0.2),  # type: ignore[arg-type]
        Scaled(0.5),  # type: ignore[arg-type]
        x0.requires_grad_(),
        noise,
        sigma,
        text.view(2, 1, 1),
        no_text.view(2, 1, 1),
        guidance=3.0,
    )
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_of_the_loss_is_the_score_difference() -> None:
    random = torch.Generator().manual_seed(0)
    x0, gradient = torch.randn(2, 3, 4, generator=random)[:, None], torch.randn(2, 1, 3, 4, generator=random)
    x0.requires_grad_()
    dmd_loss(x0, gradient).backward()
    torch.testing.assert_close(x0.grad, gradient / gradient.numel())


def test_the_gradient_is_normalised_sample_by_sample() -> None:
    random = torch.Generator().manual_seed(0)
    x0, fake, real = torch.randn(3, 2, 4, 5, generator=random)
    scale = torch.tensor([1.0, 1000.0])[:, None, None]
    plain = dmd_gradient(x0, fake, real)
    # Scaling all of one sample's inputs changes neither its own gradient nor the other sample's.
    torch.testing.assert_close(dmd_gradient(scale * x0, scale * fake, scale * real), plain)
    expected = (fake - real)[0] / (x0 - real)[0].abs().mean()
    torch.testing.assert_close(plain[0], expected)
    assert math.isfinite(dmd_gradient(x0, fake, x0).abs().max())

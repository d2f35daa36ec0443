"""Later windows as clips: their first latent frame, compared with diffusers' autoencoder, and their gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from hiar.losses.dmd import dmd_loss
from hiar.memory.counting import Counting
from hiar.training.clips import as_clips, frame_weights
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.wan.codec import WanCodec

MEAN, STD = [0.3, -0.2, 0.1], [1.5, 0.7, 1.0]
BLOCK, FRAMES = 2, 6  # latent frames of a block and of a window, which is more than the codec decodes at once


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKLWan:
    torch.manual_seed(0)
    made = AutoencoderKLWan(base_dim=4, z_dim=3, latents_mean=MEAN, latents_std=STD)
    return made.eval().requires_grad_(False)


def windows_of(videos: Tensor) -> Tensor:
    """Windows (B * W, C, F, h, w), video by video, of videos (B, C, W * F, h, w)."""
    return torch.cat([torch.stack(video.split(FRAMES, dim=1)) for video in videos])


def random_videos(rollouts: int, windows: int) -> Tensor:
    return torch.randn(rollouts, 3, windows * FRAMES, 2, 3, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_a_later_window_begins_with_the_last_picture_of_its_first_latent_frame(autoencoder: AutoencoderKLWan) -> None:
    mean, std = (torch.tensor(one).view(1, 3, 1, 1, 1) for one in (MEAN, STD))
    videos = random_videos(rollouts=2, windows=3)
    pictures = autoencoder.decode(videos * std + mean).sample
    expected = videos.clone()
    for first in (FRAMES, 2 * FRAMES):
        # Latent frame n is four pictures and ends with picture 4 n.
        alone = autoencoder.encode(pictures[:, :, 4 * first : 4 * first + 1]).latent_dist.mean
        expected[:, :, first : first + 1] = (alone - mean) / std
    found = as_clips(windows_of(videos), 3, BLOCK, WanCodec(autoencoder))
    torch.testing.assert_close(found, windows_of(expected), rtol=0, atol=1e-5)
    assert (found - windows_of(videos)).abs().amax() > 0.1


def test_the_first_block_of_a_later_window_passes_no_gradients(autoencoder: AutoencoderKLWan) -> None:
    windows = windows_of(random_videos(rollouts=2, windows=2)).requires_grad_()
    as_clips(windows, 2, BLOCK, WanCodec(autoencoder)).sum().backward()
    learned = torch.ones_like(windows)
    learned[1::2, :, :BLOCK] = 0
    assert windows.grad is not None
    assert torch.equal(windows.grad, learned)


@pytest.mark.parametrize("per_rollout", [1, 2])
def test_the_loss_of_a_later_window_is_the_mean_over_learned_frames(
    per_rollout: int, autoencoder: AutoencoderKLWan
) -> None:
    windows = windows_of(random_videos(rollouts=3, windows=2)).requires_grad_()
    gradient = torch.randn(windows.shape, generator=torch.Generator().manual_seed(6))
    codec = WanCodec(autoencoder)
    weights = frame_weights(windows, per_rollout, BLOCK, codec)
    loss = dmd_loss(as_clips(windows, per_rollout, BLOCK, codec), gradient, weights)
    learns = torch.ones(len(windows), FRAMES, dtype=torch.bool)
    if per_rollout > 1:
        learns[1::2, :BLOCK] = False
    each = [0.5 * found[:, one].square().mean() for found, one in zip(gradient, learns, strict=True)]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    (found,) = torch.autograd.grad(loss, windows)
    expected = gradient * learns[:, None, :, None, None] / windows[0].numel() / len(windows)
    expected = expected * (FRAMES / learns.sum(dim=1)).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(found, expected)


def test_the_codec_computes_in_fp32_on_bf16_windows(autoencoder: AutoencoderKLWan) -> None:
    """Windows in bf16 are decoded in fp32 and rounded once."""
    windows = windows_of(random_videos(rollouts=1, windows=2)).bfloat16()
    found = as_clips(windows, 2, BLOCK, WanCodec(autoencoder))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, as_clips(windows.float(), 2, BLOCK, WanCodec(autoencoder)).bfloat16())


def test_pictures_are_decoded_a_few_at_a_time(autoencoder: AutoencoderKLWan) -> None:
    """Memory does not grow with the length of the rollout."""
    codec, peaks = WanCodec(autoencoder), []
    for windows in (2, 5):
        count, latents = Counting(), windows_of(random_videos(rollouts=1, windows=windows))
        with count, count.phase("encoding anew"):
            as_clips(latents, windows, BLOCK, codec)
        peaks.append(count.peaks["encoding anew"])
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize("windows", [1, 3])
def test_windows_are_unchanged_if_single_or_if_each_latent_frame_is_a_picture(
    windows: int, autoencoder: AutoencoderKLWan
) -> None:
    made = windows_of(random_videos(rollouts=2, windows=windows))
    assert as_clips(made, windows, BLOCK, PatchCodec(patch=1, channels=3, width=4, depth=1)) is made
    assert as_clips(made, 1, BLOCK, WanCodec(autoencoder)) is made

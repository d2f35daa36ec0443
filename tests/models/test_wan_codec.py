"""Wan's decoder block by block against diffusers' own, which decodes whole videos."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from hiar.models.wan_codec import WanDecoder


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 16, 9, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("block", [1, 3, 9])
def test_blocks_give_the_frames_of_the_whole_video(autoencoder: AutoencoderKLWan, latents: Tensor, block: int) -> None:
    decode = WanDecoder(autoencoder).decoding()
    video = torch.cat([decode(part) for part in latents.split(block, dim=2)], dim=2)
    assert video.shape == (2, 3, 1 + 8 * 4, 16, 24)
    mean, std = (
        torch.tensor(numbers).view(1, -1, 1, 1, 1)
        for numbers in (autoencoder.config.latents_mean, autoencoder.config.latents_std)
    )
    whole = autoencoder.decode(latents * std + mean).sample
    assert video.std() > 0.01
    torch.testing.assert_close(video, whole, rtol=0, atol=1e-4)


def test_videos_decoded_in_turns_do_not_see_each_other(autoencoder: AutoencoderKLWan, latents: Tensor) -> None:
    decoder = WanDecoder(autoencoder)
    alone = [
        [decode(part) for part in video.split(3, dim=2)]
        for video in latents.split(1)
        for decode in [decoder.decoding()]
    ]
    one, other = decoder.decoding(), decoder.decoding()
    for number, part in enumerate(latents.split(3, dim=2)):
        assert torch.equal(one(part[:1]), alone[0][number])
        assert torch.equal(other(part[1:]), alone[1][number])

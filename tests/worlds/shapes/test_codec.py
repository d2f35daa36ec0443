"""The patch codec: its linear algebra, its files, and that its decoder learns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from shape_worlds import DEFAULT
from students import smoke_params
from torch import Tensor

from hiar.errors import UserError
from hiar.models.pixels import to_frames, to_video
from hiar.worlds.shapes import open_world
from hiar.worlds.shapes.codec import CONFIG, WEIGHTS, PatchCodec
from hiar.worlds.shapes.render import clips

PATCH, CHANNELS = 8, 4


@pytest.fixture(scope="module")
def video() -> Tensor:
    return to_video(clips(DEFAULT, seed=0, first=0, count=60, frames=3)[0])


@pytest.fixture
def codec(video: Tensor) -> PatchCodec:
    """A codec with a fitted encoder and random weights throughout the decoder."""
    torch.manual_seed(0)
    codec = PatchCodec(PATCH, CHANNELS, width=8, depth=2)
    codec.fit_encoder(video.transpose(1, 2).flatten(0, 1))
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return codec


def _patches(video: Tensor) -> Tensor:
    frames = video.transpose(1, 2).flatten(0, 1)
    return torch.nn.functional.pixel_unshuffle(frames, PATCH).movedim(1, -1).flatten(0, -2)


def test_latents_have_the_stated_shape_zero_mean_and_unit_variance(codec: PatchCodec, video: Tensor) -> None:
    latents = codec.encode(video)
    assert latents.shape == (60, CHANNELS, 3, 8, 8)
    channel = (0, 2, 3, 4)
    torch.testing.assert_close(latents.mean(channel), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(channel), torch.ones(CHANNELS), atol=1e-3, rtol=0)
    assert codec.decode(latents).shape == video.shape


def test_the_untrained_decoder_is_the_best_linear_one(video: Tensor) -> None:
    codec = PatchCodec(PATCH, CHANNELS, width=8, depth=2)
    codec.fit_encoder(video.transpose(1, 2).flatten(0, 1))
    patches = _patches(video)
    singular = torch.linalg.svdvals((patches - patches.mean(dim=0)).double())
    least = singular[CHANNELS:].square().sum() / patches.numel()  # Eckart and Young
    error = (codec.decode(codec.encode(video)) - video).square().mean()
    torch.testing.assert_close(error.double(), least, rtol=1e-4, atol=0)


def test_fitting_is_repeatable_whatever_the_order_of_the_frames(video: Tensor) -> None:
    frames = video.transpose(1, 2).flatten(0, 1)
    first, second = PatchCodec(PATCH, CHANNELS, 8, 1), PatchCodec(PATCH, CHANNELS, 8, 1)
    first.fit_encoder(frames)
    second.fit_encoder(frames.flip(0))
    torch.testing.assert_close(first.encode(video), second.encode(video), atol=1e-3, rtol=0)


def test_a_latent_frame_is_a_picture() -> None:
    world = open_world(DEFAULT.model_copy(update={"frames_per_second": 8}))
    assert world.seconds(60) == 7.5


def test_a_new_codec_depends_on_its_seed_alone() -> None:
    """Its weights and the clips for fitting its encoder depend on the seed alone."""
    world, settings = open_world(DEFAULT), smoke_params().codec
    assert settings is not None
    made = []
    for seed in (0, 1, 1):
        torch.randn(3)
        made.append(world.new_codec(settings, seed=seed, frames=2).state_dict())
    for name, tensor in made[1].items():
        assert torch.equal(tensor, made[2][name]), name
    for name in ("mean", "basis", "scale", "enter.weight"):
        assert not torch.equal(made[1][name], made[0][name]), name


def test_frames_are_independent(codec: PatchCodec, video: Tensor) -> None:
    latents = codec.encode(video[:2])
    alone = codec.encode(video[:2, :, 1:2])
    torch.testing.assert_close(latents[:, :, 1:2], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.decode(latents)[:, :, 1:2], codec.decode(alone), atol=1e-5, rtol=0)
    changed = latents.clone()
    changed[:, :, 0] += 1
    torch.testing.assert_close(codec.decode(changed)[:, :, 1:], codec.decode(latents)[:, :, 1:], atol=0, rtol=0)


def test_a_short_training_improves_on_the_linear_decoder_also_on_noisy_latents(video: Tensor) -> None:
    torch.manual_seed(0)
    codec = PatchCodec(PATCH, CHANNELS, width=32, depth=2)
    codec.fit_encoder(video.transpose(1, 2).flatten(0, 1))
    held_out = to_video(clips(DEFAULT, seed=0, first=1000, count=40, frames=1)[0])
    noise = 0.3 * torch.randn(codec.encode(held_out).shape)
    before = [codec.loss(held_out, n).item() for n in (torch.zeros(()), noise)]
    optimizer = torch.optim.AdamW(codec.parameters(), lr=4e-3)
    for _ in range(100):
        batch = video[torch.randint(len(video), (16,)), :, :1]
        loss = codec.loss(batch, 0.2 * torch.randn(16, CHANNELS, 1, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = [codec.loss(held_out, n).item() for n in (torch.zeros(()), noise)]
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]


def test_the_loss_is_the_mean_squared_error_and_trains_the_decoder_only(codec: PatchCodec, video: Tensor) -> None:
    noise = torch.randn(60, CHANNELS, 3, 8, 8)
    loss = codec.loss(video, noise)
    expected = (codec.decode(codec.encode(video) + noise) - video).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in codec.parameters())
    assert not any(buffer.requires_grad for buffer in codec.buffers())


def test_a_saved_codec_comes_back_the_same(codec: PatchCodec, video: Tensor, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = PatchCodec.load(tmp_path)
    assert loaded.config == codec.config
    assert torch.equal(loaded.decode(loaded.encode(video[:2])), codec.decode(codec.encode(video[:2])))
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    for name in (CONFIG, WEIGHTS):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _widen(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 9}))


def _misname(path: Path) -> None:
    path.write_text('{"patch": 8, "colour": 4}')


def _garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{")


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        (CONFIG, _remove, "cannot be read"),
        (WEIGHTS, _remove, "cannot be read"),
        (WEIGHTS, _truncate, "does not fit"),
        (WEIGHTS, _garble, "does not fit"),
        (CONFIG, _widen, "does not fit"),
        (CONFIG, _misname, "not a codec's configuration"),
        (CONFIG, _garble, "not a codec's configuration"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    codec: PatchCodec, tmp_path: Path, name: str, damage: object, complaint: str
) -> None:
    codec.save(tmp_path)
    damage(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(UserError, match=complaint) as error:
        PatchCodec.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        PatchCodec.load(tmp_path / "nowhere")


def test_frames_survive_conversion_to_video_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(2, 3, 16, 16, 3)
    video = to_video(frames)
    assert video.shape == (2, 3, 3, 16, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(to_frames(video), frames)
    assert torch.equal(to_frames(torch.full((3, 1, 2, 2), math.pi)), torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))

"""Clips that a video continues: which of their frames are used, and at what size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from students import save_student
from torch import Tensor

from hiar.config import Context, Order
from hiar.errors import UserError
from hiar.grid import make_grid
from hiar.io.video import read_mp4, write_mp4
from hiar.models.generator import load_generator
from hiar.models.pixels import to_video
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import generate
from hiar.schedule import step_sigmas
from hiar.stages.clips import fitted, given_latents, read_clip, read_image, whole_blocks
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.stages.stream import stream
from hiar.worlds.wan.codec import pixel_frames

HERE = Path("clip.mp4")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 grey frames of 64x48 pixels, each brighter than the one before."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(path, (torch.arange(50) * 5).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 48, 64, 3), fps=16)
    return path


def _numbers(frames: Tensor) -> list[int]:
    """The positions of these frames in the clip, by their brightness."""
    return [round(float(frame.float().mean()) / 5) for frame in frames]


@pytest.mark.parametrize(
    ("block", "most", "taken"),
    [(3, 9, 45), (3, 2, 21), (1, 99, 49), (13, 1, 49), (12, 5, 45)],  # 50 frames make 13 latent frames
)
def test_the_last_whole_blocks_of_a_clip_are_used_and_the_rest_reported(
    clip: Path, block: int, most: int, taken: int, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = read_clip(clip, 48, 64, block, most, False, pixel_frames)
    assert frames.shape == (taken, 48, 64, 3)
    assert _numbers(frames) == list(range(50 - taken, 50))
    assert f"of its 50 pictures the first {50 - taken} are skipped" in capfd.readouterr().err


@pytest.mark.parametrize(("pictures", "block", "blocks"), [(1, 1, 1), (9, 3, 1), (20, 3, 1), (21, 3, 2), (81, 3, 7)])
def test_blocks_are_counted_with_a_first_frame_of_one_picture(pictures: int, block: int, blocks: int) -> None:
    assert whole_blocks(pictures, block, HERE, pixel_frames) == blocks


@pytest.mark.parametrize(("pictures", "block", "needed"), [(0, 1, 1), (1, 3, 9), (8, 3, 9)])
def test_a_clip_that_is_too_short_is_refused(pictures: int, block: int, needed: int) -> None:
    with pytest.raises(UserError, match=rf"^clip.mp4: has {pictures} pictures: .* takes {needed}; give a longer clip$"):
        whole_blocks(pictures, block, HERE, pixel_frames)


def test_another_size_is_refused_or_cut_to_the_middle(clip: Path) -> None:
    with pytest.raises(UserError, match=r"clip.mp4: has 64x48 pixels: should have 32x32; resize it, or add --resize$"):
        read_clip(clip, 32, 32, 1, 1, False, pixel_frames)
    frames = read_clip(clip, 32, 32, 1, 2, True, pixel_frames)
    assert frames.shape == (5, 32, 32, 3)
    assert _numbers(frames) == [45, 46, 47, 48, 49]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 120), (90, 30), (7, 200)])
def test_pictures_are_scaled_to_cover_and_cropped_to_the_centre(height: int, width: int) -> None:
    ramps = torch.stack([torch.linspace(0, 255, 60).repeat(40, 1), torch.linspace(0, 255, 40)[:, None].repeat(1, 60)])
    frames = torch.cat([ramps, ramps[:1]]).round().to(torch.uint8).movedim(0, -1)[None]
    out = fitted(frames, height, width, resize=True, what=HERE)
    assert out.shape == (1, height, width, 3)
    middle = out.float().flip(1, 2) + out.float()  # a ramp that stays centred is its own opposite
    assert (middle[..., :2] - 255).abs().max() <= 3
    horizontal, vertical = out[0, 0, :, 0].float(), out[0, :, 0, 1].float()
    scale = max(height / 40, width / 60)
    assert abs((horizontal[-1] - horizontal[0]) - 255 * width / (60 * scale)) < 12
    assert abs((vertical[-1] - vertical[0]) - 255 * height / (40 * scale)) < 12


def test_pictures_of_the_size_wanted_are_untouched() -> None:
    frames = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(fitted(frames, 8, 8, resize=True, what=HERE), frames)


def test_an_image_is_read_as_it_is_shown(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2))
    image.putdata([(10 * n, 0, 255) for n in range(6)])
    image.save(tmp_path / "plain.png")
    assert read_image(tmp_path / "plain.png", 2, 3, resize=False)[0, :, :, 0].tolist() == [[0, 10, 20], [30, 40, 50]]
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 3, 2, resize=False)[0, :, :, 0].tolist() == [[30, 0], [40, 10], [50, 20]]
    glass = Image.new("RGBA", (2, 1))
    glass.putdata([(200, 100, 50, 0), (200, 100, 50, 255)])
    glass.save(tmp_path / "glass.png")
    assert read_image(tmp_path / "glass.png", 1, 2, resize=False)[0, 0].tolist() == [[0, 0, 0], [200, 100, 50]]


def test_a_picture_beyond_the_limit_of_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(UserError, match=r"a.png: is not a readable picture \(.*exceeds limit.*\); save it as"):
        read_image(tmp_path / "a.png", 8, 8, resize=False)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_missing_or_unreadable_image_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*a.png: no such picture; name another$"):
        read_image(tmp_path / "a.png", 2, 3, resize=False)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*a.png: is not a readable picture \([^\n]*\); save it as"):
        read_image(tmp_path / "a.png", 2, 3, resize=False)


ORDERS = [("block_first", "finished"), ("step_first", "output"), ("diagonal", "input"), ("block_first", "shared")]


@pytest.mark.parametrize(("order", "context"), ORDERS)
def test_continuing_a_clip_equals_continuing_its_latents(tmp_path: Path, order: Order, context: Context) -> None:
    """Three blocks given as a video, the rest generated: equals the rollout that is given the encoded blocks."""
    save_student(tmp_path / "student")
    student = load_generator(tmp_path / "student")
    frames, _ = student.world.clips(seed=1, first=0, count=1, frames=11)
    write_mp4(tmp_path / "clip.mp4", frames[0], 12)
    request = Request(tmp_path / "student", ["a red disc moves left"], 15, clip=tmp_path / "clip.mp4", seed=3)
    sample_prompts(replace(request, order=order, context=context), tmp_path / "out", save_latents=True)
    latents = load_file(tmp_path / "out" / "latents.safetensors")["latents"]
    assert latents.shape[2] == 15
    given = student.codec.encode(to_video(read_mp4(tmp_path / "clip.mp4")[None, -9:]))
    assert torch.equal(latents[:, :, :9], given)
    grid = make_grid(context, blocks=5, steps=4, window=student.card.video.window_blocks, given=3)
    sigmas = step_sigmas(4, student.card.schedule.student_shift)
    rollout = Rollout(grid, sigmas, student.block_shape, "sde", 3, [0], student.embed(request.prompts))
    expected = generate(student.denoiser, rollout, order, given)
    assert (latents - expected).abs().max() < 1e-5 * expected.abs().max()
    assert read_mp4(tmp_path / "out" / "0000.mp4").shape[0] == 15
    if (order, context) == ORDERS[0]:
        stream(request, [], tmp_path / "streamed.mp4")
        assert len(read_mp4(tmp_path / "streamed.mp4")) == 15


def test_an_image_becomes_one_still_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student")
    student = load_generator(tmp_path / "student")
    frames, _ = student.world.clips(seed=1, first=0, count=1, frames=1)
    Image.fromarray(frames[0, 0].numpy()).save(tmp_path / "picture.png")
    request = Request(tmp_path / "student", ["a red disc moves left"], 9, image=tmp_path / "picture.png")
    given = given_latents(student, request)
    assert given is not None
    assert given.shape[2] == student.card.video.block
    assert torch.equal(given, student.codec.encode(to_video(frames.repeat(1, 3, 1, 1, 1))))
    monkeypatch.setattr(type(student.codec), "pictures", staticmethod(pixel_frames))
    longer = replace(request, frames=15)  # a block of nine pictures, each of which this codec makes a latent frame
    given = given_latents(student, longer)
    assert given is not None
    assert given.shape[2] == 9


def test_a_student_that_sees_one_block_continues_one(clip: Path, tmp_path: Path) -> None:
    save_student(tmp_path / "student", video={"window": 3})
    student = load_generator(tmp_path / "student")
    given = given_latents(student, Request(tmp_path / "student", ["a red disc moves left"], 9, clip=clip, resize=True))
    assert given is not None
    assert given.shape[2] == student.card.video.block == 3


def test_clips_that_cannot_be_continued_are_refused(tmp_path: Path, clip: Path) -> None:
    save_student(tmp_path / "student")
    student = load_generator(tmp_path / "student")
    request = Request(tmp_path / "student", ["a red disc moves left"], 9)
    large = {"clip": clip, "resize": True}
    for changed, words in (
        ({"clip": clip}, "has 64x48 pixels: should have 64x64; resize it, or add --resize"),
        (large | {"frames": 9}, "--frames = 9: .* already gives 12; ask for more"),
        (large | {"frames": 12}, "--frames = 12: .* already gives 12; ask for more"),
        (large | {"image": clip}, "--video, --image: give one of the two"),
        ({"clip": tmp_path / "nowhere.mp4"}, "nowhere.mp4: no such"),
        ({"image": clip}, "is not a readable picture"),
    ):
        with pytest.raises(UserError, match=words):
            given_latents(student, replace(request, **changed))  # type: ignore[arg-type]
    teacher = replace(student, card=student.card.model_copy(update={"stage": "teacher"}))
    with pytest.raises(UserError, match="--video, --image: the teacher generates whole clips and cannot continue one"):
        given_latents(teacher, replace(request, clip=clip))

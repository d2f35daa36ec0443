"""A walk needs the predicted memory, and one that does not fit is refused before it begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import hiar
from safetensors.torch import load_file
from students import save_student
from tiny import relative_error

from hiar.config import Context, Order, Passes
from hiar.errors import UserError
from hiar.grid import walk_passes
from hiar.io.free import gigabytes
from hiar.memory.counting import Counting
from hiar.memory.sampling import decode, decode_bytes, walk_bytes, walk_through
from hiar.models.card import Walk
from hiar.models.generator import load_generator
from hiar.rollout.cell import Memory, carry_out
from hiar.stages import fitting
from hiar.stages.computing import Choice
from hiar.stages.fitting import Way, check_frames, check_memory, ring_bytes, settled_way, way_of
from hiar.stages.plan import load_asked, plan_line
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout

HIAR = Walk(order="step_first", context="output")
BYTES = {"diagonal": 100, "step_first": 40, "block_first": 100}


@torch.no_grad()
@pytest.mark.parametrize(
    ("order", "context"), [("step_first", "output"), ("block_first", "finished"), ("block_first", "shared")]
)
def test_caches_take_the_predicted_bytes(tmp_path: Path, order: Order, context: Context) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    walk = Walk(order=order, context=context)
    text = source.embed(["a red disc moves left", "a blue disc moves up"])
    rollout = make_rollout(source, text, walk, 24, 0, range(2))
    memory = Memory(source.denoiser, rollout)
    for step in walk_passes(rollout.grid, order):
        carry_out(memory, step)
    held = sum(t.untyped_storage().nbytes() for cache in memory.rings._rings for ring in cache.values() for t in ring)
    assert held == ring_bytes(source, rollout.grid, 2)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 24])
@pytest.mark.parametrize(("order", "passes"), [("diagonal", "batched"), ("step_first", "fused")])
def test_caches_hold_no_more_blocks_than_the_video_has(
    tmp_path: Path, blocks: int, order: Order, passes: Passes
) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), HIAR, 3 * blocks, 0, [0])
    grid, memory, held = rollout.grid, Memory(source.denoiser, rollout), [0]
    assert grid.blocks == blocks
    for step in walk_passes(grid, order, passes=passes):
        carry_out(memory, step)
        rings = [t for cache in memory.rings._rings for ring in cache.values() for t in ring]
        held.append(sum(t.untyped_storage().nbytes() for t in rings))
        for cell in filter(grid.ends, step.denoise):
            memory.rings.drop(grid.cache(cell.step))
    predicted = ring_bytes(source, grid, 1, Way(order, passes, 1).caches(grid))
    assert max(held) == predicted
    single = make_rollout(source, rollout.text, HIAR, 3, 0, [0]).grid
    assert ring_bytes(source, grid, 1, 1) == min(blocks, grid.window) * ring_bytes(source, single, 1, 1)


@torch.no_grad()
def test_a_walk_takes_the_predicted_memory(tmp_path: Path) -> None:
    """Caches and activations, counted while the same walk runs on real tensors."""
    save_student(tmp_path / "student", model={"layers": 4})  # counted are two and three
    source = load_generator(tmp_path / "student")
    text = source.embed(["a red disc moves left", "a blue disc moves up"])
    for way in (("diagonal", "batched"),):
        predicted = 0
        for videos in (1, 2):
            rollout = make_rollout(source, text[:videos], HIAR, 24, 0, range(videos))
            predicted = predicted or walk_bytes(source, rollout, *way)
            count = Counting()
            walk_through(count, source.denoiser, rollout, *way)
            # A few tensors exist once, however many videos there are.
            assert 0.85 * videos * predicted < count.peaks["walk"] < 1.02 * videos * predicted
    count = Counting()
    decode(count, (1, *source.block_shape), source.codec)
    assert count.peaks["decoding"] == pytest.approx(decode_bytes(source, source.card.video.block)[0], rel=0.02)


@pytest.fixture
def limit_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, int], None]:
    """Sets the bytes that are free and those that decoding needs, 30 of which are kept between two blocks.

    A video needs 100 batched and 40 step by step, of which each cache takes 10.
    """

    def set_bytes(free: float, decoding: int) -> None:
        monkeypatch.setattr(fitting, "free_bytes", lambda device: (free + 0.5) / fitting.USABLE)
        monkeypatch.setattr(fitting, "decode_bytes", lambda source, frames: (decoding, 30))
        monkeypatch.setattr(fitting, "ring_bytes", lambda source, grid, videos, caches=4: 10 * videos * caches)
        monkeypatch.setattr(fitting, "walk_bytes", lambda source, rollout, order, passes: BYTES[order])

    return set_bytes


def test_with_little_memory_fewer_videos_are_made_at_a_time_then_step_by_step(
    tmp_path: Path, limit_memory: Callable[[float, int], None]
) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), HIAR, 24, 0, [0])
    limit_memory(1e12, 0)
    assert way_of(source, HIAR, rollout, 5) == Way("diagonal", "batched", 5)
    for free, videos in ((500, 5), (299, 2), (100, 1)):
        limit_memory(free, 100)
        assert way_of(source, HIAR, rollout, 5) == Way("diagonal", "batched", videos, 100)
    limit_memory(99, 0)
    assert way_of(source, HIAR, rollout, 5) == Way("step_first", "fused", 2, 40)
    assert way_of(source, HIAR, rollout, 5, beside=2).videos == 1  # processes share what is free
    for free, decoding in ((130, 80), (150, 110)):  # walk + decoder state, decoding + caches
        limit_memory(free, decoding)
        assert way_of(source, HIAR, rollout, together=True) == Way("diagonal", "batched", 1, 100)
    for free, decoding, together, needed in (
        (39, 0, False, 40),
        (500, 501, False, 501),
        (129, 80, True, 130),
        (149, 110, True, 150),
    ):
        limit_memory(free, decoding)
        figures = f"{gigabytes(needed)}, {gigabytes(free)} are free to use"
        with pytest.raises(UserError, match=f"the rest of a video takes are {figures}; ask for a smaller"):
            way_of(source, HIAR, rollout, together=together)
    finished = Walk(order="block_first", context="finished")  # waits for finished blocks: no cheaper way exists
    limit_memory(99, 0)
    with pytest.raises(UserError, match="are free to use"):
        way_of(source, finished, make_rollout(source, rollout.text, finished, 24, 0, [0]), 5)
    settled = settled_way(tmp_path, Way("step_first", "fused", 1, 40))
    assert settled_way(tmp_path, Way("diagonal", "batched", 5)) == settled


def test_a_stream_decodes_one_block_at_a_time_and_sampling_one_part(
    tmp_path: Path, limit_memory: Callable[[float, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), HIAR, 24, 0, [0])
    block, part = source.card.video.block, source.codec.chunk
    assert block < part
    limit_memory(500, 0)
    monkeypatch.setattr(fitting, "decode_bytes", lambda source, frames: (frames * 100, 0))
    assert way_of(source, HIAR, rollout, together=True).videos == 1
    with pytest.raises(UserError, match=rf"{gigabytes(part * 100)}, .* are free to use"):
        way_of(source, HIAR, rollout)


def test_caches_that_do_not_fit_are_refused_with_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    text = source.embed(["a red disc moves left", "a blue disc moves up"])
    rollout = make_rollout(source, text, HIAR, 24, 0, range(2))
    for caches in (None, 1):
        needed = ring_bytes(source, rollout.grid, 2, caches)
        monkeypatch.setattr(fitting, "free_bytes", lambda device, free=needed: free)
        check_memory(source, rollout, caches)
        monkeypatch.setattr(fitting, "free_bytes", lambda device, free=needed - 1: free)
        with pytest.raises(UserError, match=rf"take {gigabytes(needed)} for 2 video\(s\) at a time, .* are free"):
            check_memory(source, rollout, caches)


def test_videos_made_with_little_memory_are_the_same(
    tmp_path: Path, limit_memory: Callable[[float, int], None]
) -> None:
    save_student(tmp_path / "student")
    request = Request(tmp_path / "student", ["a red disc moves left", "a blue disc moves up"], 12)
    made = []
    for free in (1e12, 40):
        limit_memory(free, 0)
        out = tmp_path / f"{free}"
        sample_prompts(request, out, save_latents=True)
        made.append(load_file(out / "latents.safetensors")["latents"])
    assert relative_error(made[1], made[0]) < 1e-5


def test_a_window_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    save_student(tmp_path / "student", video={"window": 999_999_999})
    request = ("--checkpoint", "student", "--prompt", "a red disc moves left", "--out", "out")
    stderr = hiar("stream", *request, folder=tmp_path, code=2).stderr
    assert stderr.startswith("error: video.window = 999999999: the caches of 999999999 frames and the rest of a video ")
    assert " are free to use; ask for a smaller --size, or take a checkpoint with a shorter window" in stderr
    assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    hiar("sample", *request, "--frames", 9, folder=tmp_path)  # 9 frames are three blocks, however large the window


def test_all_latents_and_one_part_of_the_pictures_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    latent = 4 * 6 * math.prod(source.latent_size)
    pictures = (4 + 4 + 1) * 3 * 64 * 64 * source.codec.pictures(min(6, source.codec.chunk))

    def check(memory: int, disk: int, batch: int = 2, count: int = 500, kept: bool = False, beside: int = 1) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=memory))
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=2 * disk, used=disk, free=disk))
        check_frames(source, 6, count, batch, tmp_path / "out" / "further", kept, beside=beside)

    assert 2 * latent < pictures < 400 * latent
    check(2 * latent + pictures, 500 * latent)
    check(800 * latent, 500 * latent, batch=400)
    check(latent + pictures, latent, batch=400, count=1)
    for memory, disk, line in (
        (2 * latent + pictures - 1, 500 * latent, r"2 video\(s\) at a time take"),
        (2 * latent + pictures, 500 * latent - 1, "the latents take"),
    ):
        with pytest.raises(UserError, match=rf"^--frames = 6: {line} .* are free.*; ask for fewer"):
            check(memory, disk)
    check(3 * (2 * latent + pictures), 500 * latent, beside=3)
    with pytest.raises(UserError, match=r"2 video\(s\) at a time take"):
        check(3 * (2 * latent + pictures) - 1, 500 * latent, beside=3)
    check(2 * latent + pictures, 1000 * latent, kept=True)  # on disk twice: in parts, and as one file
    with pytest.raises(UserError, match="the latents take"):
        check(2 * latent + pictures, 1000 * latent - 1, kept=True)
    with pytest.raises(UserError, match=r"400 video\(s\) at a time take"):
        check(800 * latent - 1, 500 * latent, batch=400)
    scratch = tmp_path / "out" / "further.partial" / ".latents"  # latents of an interrupted run need no more space
    scratch.mkdir(parents=True)
    (scratch / "00000.safetensors").write_bytes(bytes(latent))
    check(2 * latent + pictures, 499 * latent)
    scratch = tmp_path / "out" / "further" / ".latents"  # a stage names the unfinished folder itself
    scratch.mkdir(parents=True)
    (scratch / "00000.safetensors").write_bytes(bytes(latent))
    check(2 * latent + pictures, 498 * latent)
    monkeypatch.setattr(source.codec, "chunk", 3)  # of a long video only a part is decoded at a time
    pictures = (4 + 4 + 1) * 3 * 64 * 64 * source.codec.pictures(3)
    check(2 * latent + pictures, 500 * latent)
    with pytest.raises(UserError, match=r"2 video\(s\) at a time take"):
        check(2 * latent + pictures - 1, 500 * latent)


def test_the_plan_line_has_the_number_of_forward_calls(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    walk = Walk(order="step_first", context="output")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), walk, 30, 0, [0])
    way = Way("diagonal", "batched", 1)
    line = plan_line(source, walk, rollout, Choice(), way)
    assert "batched passes (13 forward calls for 10 blocks in 4 steps)" in line
    line = plan_line(source, walk, rollout, Choice(), way, 2)
    assert "batched passes (11 forward calls in each of 2 process(es) for 10 blocks in 4 steps)" in line
    line = plan_line(source, walk, rollout, Choice(), way, 3)  # one of the processes has two steps
    assert "batched passes (11 forward calls in each of 3 process(es) for 10 blocks in 4 steps)" in line


def test_the_plan_line_has_the_size_of_the_caches(tmp_path: Path) -> None:
    """Step by step, one cache exists at a time."""
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), HIAR, 30, 0, [0])
    one = ring_bytes(source, rollout.grid, 1, 1)
    for way, caches in ((Way("diagonal", "batched", 5), 5 * rollout.grid.caches), (Way("step_first", "fused", 5), 5)):
        line = plan_line(source, HIAR, rollout, Choice(), way)
        assert f"caches: {gigabytes(caches * one)} for 5 video(s) at a time" in line
    assert rollout.grid.caches > 1


def test_the_built_in_world_has_one_size(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    request = Request(tmp_path / "student", ["a red disc moves left"], 12, size=(32, 48))
    with pytest.raises(UserError, match=r"--size = 48x32: the built-in video world has one size, 64x64; leave"):
        load_asked(request, torch.device("cpu"))

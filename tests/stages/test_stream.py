"""The stream's blocks equal those of `hiar sample`, endlessly in constant memory; impossible streams are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import hiar
from students import save_attentive_student, save_student
from tiny import live_tensor_bytes, relative_error

from hiar.errors import UserError
from hiar.io.artifacts import write_manifest
from hiar.io.video import open_stream, read_mp4
from hiar.models.card import Walk
from hiar.models.generator import Generator, load_generator
from hiar.stages import fitting
from hiar.stages import stream as streaming
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.stages.sample import sample_latents
from hiar.stages.stream import change_prompts, clean_blocks, interruptions, stream, stream_rollout
from hiar.stages.videos import decoding

BLOCK = 3
PROMPT, OTHER = "a red disc moves left", "a blue wide bar moves"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "student"
    save_attentive_student(folder)
    return folder


@pytest.fixture
def student(folder: Path) -> Generator:
    return load_generator(folder)


def blocks_of(
    student: Generator, changes: dict[int, str], walk: Walk, blocks: int | None = None
) -> Iterator[torch.Tensor]:
    return clean_blocks(
        student, walk, stream_rollout(student, PROMPT, changes, walk, blocks and blocks * BLOCK, seed=5)
    )


@pytest.mark.parametrize(
    ("order", "context"),
    [("step_first", "output"), ("diagonal", "input"), ("block_first", "finished"), ("block_first", "shared")],
)
def test_the_blocks_are_those_of_sample(student: Generator, order: str, context: str) -> None:
    walk = Walk(order=order, context=context)
    frames = 8 * BLOCK
    expected = sample_latents(student, [PROMPT, OTHER], frames, walk, seed=5, numbers=range(2))[0]
    for blocks in (None, 8):
        latents = torch.cat(list(islice(blocks_of(student, {}, walk, blocks), 8)), dim=1)
        assert relative_error(latents, expected) < 1e-5


def test_a_given_clip_comes_first_block_by_block(student: Generator) -> None:
    walk, clip = Walk(order="step_first", context="output"), torch.randn(1, *student.block_shape).repeat(1, 1, 2, 1, 1)
    rollout = stream_rollout(student, PROMPT, {}, walk, 4 * BLOCK, 5, clip)
    blocks = list(clean_blocks(student, walk, rollout, clip))
    assert [tuple(block.shape) for block in blocks] == [student.block_shape] * 4
    assert torch.equal(torch.cat(blocks[:2], dim=1), clip[0])


def test_a_change_of_the_prompt_shows_from_its_block_on(student: Generator) -> None:
    walk = Walk(order="step_first", context="output")
    one, other = (list(islice(blocks_of(student, changes, walk), 6)) for changes in ({}, {3: OTHER}))
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(one[:3], other[:3], strict=True))
    assert all(relative_error(a, b) > 0.05 for a, b in zip(one[3:], other[3:], strict=True))


def test_renewed_contexts_change_the_video_after_a_prompt_change(student: Generator) -> None:
    walk = Walk(order="step_first", context="output")
    rollout = stream_rollout(student, PROMPT, {3: OTHER}, walk, 6 * BLOCK, 5)
    plain, renewed = (list(clean_blocks(student, walk, rollout, renew=renew)) for renew in (False, True))
    assert len(renewed) == 6
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(plain[:3], renewed[:3], strict=True))
    assert all(relative_error(a, b) > 1e-3 for a, b in zip(plain[3:], renewed[3:], strict=True))


@torch.no_grad()
def test_four_hundred_blocks_in_constant_memory(student: Generator) -> None:
    walk = Walk(order="step_first", context="output")
    blocks = blocks_of(student, {80: OTHER, 200: PROMPT}, walk)
    size, rate = student.card.world.size, student.card.world.frames_per_second
    alive = {}
    decode = decoding(student)
    with open_stream(Path(os.devnull), size, size, rate) as add:
        for number, latent in enumerate(islice(blocks, 401)):
            add(decode(latent))
            if number in (100, 400):
                alive[number] = live_tensor_bytes()
    assert alive[400] <= alive[100]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("10=" + OTHER, "frame 10 is inside a block of 3 frames; use 9 or 12"),
        ("2=" + OTHER, "frame 2 is inside a block of 3 frames; use 3"),
        ("0=" + OTHER, "frame 0 is where the video starts; give this prompt with --prompt"),
        ("30=" + OTHER, "the video ends earlier, after 30 frames; raise --frames"),
        ("6=" + OTHER, "frame 6 already has another prompt; leave one of them out"),
        ("-3=" + OTHER, "is not FRAME=PROMPT; write one like '60=a red disc moves'"),
        (OTHER, "is not FRAME=PROMPT; write one like"),
        ("9=", "is not FRAME=PROMPT; write one like"),
    ],
)
def test_invalid_changes_of_the_prompt_are_refused(change: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        change_prompts([f"6={PROMPT}", change], BLOCK, 30)
    assert str(refused.value).startswith(f"--change = {change}: {line}")


def test_changes_at_frames_become_changes_at_blocks() -> None:
    assert change_prompts([f" 6 = {OTHER} ", f"900={PROMPT}"], BLOCK, None) == {2: OTHER, 300: PROMPT}


def refuse(checkpoint: Path, tmp_path: Path, **changed: object) -> str:
    """The error line of a refused request; a file that was there before must stay as it is."""
    out = tmp_path / "v.mp4"
    out.write_text("of before")
    changes = changed.pop("changes", [])
    request = replace(Request(checkpoint, [PROMPT], 30), **changed)  # type: ignore[arg-type]
    with pytest.raises(UserError) as refused:
        stream(request, changes, out)  # type: ignore[arg-type]
    assert out.read_text() == "of before"
    return str(refused.value)


def test_a_refused_stream_leaves_the_old_file(folder: Path, tmp_path: Path) -> None:
    assert refuse(folder, tmp_path, prompts=["a red disk moves"]).startswith("prompt 'a red disk moves': unknown word")
    assert refuse(folder, tmp_path, changes=["6=a red disk moves"]).startswith("prompt 'a red disk moves': unknown")
    assert refuse(folder, tmp_path, changes=[f"7={OTHER}"]).startswith(f"--change = 7={OTHER}: frame 7 is inside a")
    assert refuse(folder, tmp_path, frames=31) == (
        "--frames = 31: must be a positive multiple of the block of 3 frames; try 30"
    )
    assert refuse(folder, tmp_path, context="shared").startswith("--order = step_first: shared context is written by")


def test_a_teacher_is_refused(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    save_student(teacher)
    card = json.loads((teacher / "generator.json").read_text())
    (teacher / "generator.json").write_text(json.dumps(card | {"stage": "teacher", "walk": None}))
    write_manifest(teacher, "checkpoint")
    line = refuse(teacher, tmp_path, frames=None)
    assert (
        line == f"--checkpoint = {teacher}: is a teacher, which makes whole clips; name an init or a distilled student"
    )


def test_a_checkpoint_that_is_not_what_its_manifest_says_is_refused(folder: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(folder, tmp_path / "altered")
    with (altered / "generator.json").open("a") as card:
        card.write(" ")  # still a valid card
    load_generator(altered)
    assert refuse(altered, tmp_path).startswith(f"{altered}/generator.json: size ")


def test_caches_and_decoding_have_to_fit_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each alone fits, a video can be sampled; a stream needs both in memory at once."""
    monkeypatch.setattr(fitting, "ring_bytes", lambda source, grid, videos, caches=4: 10 * videos * caches)
    monkeypatch.setattr(fitting, "walk_bytes", lambda source, rollout, order, passes: 100)
    monkeypatch.setattr(fitting, "decode_bytes", lambda source, frames: (100, 30))
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 110 / fitting.USABLE)
    sample_prompts(Request(folder, [PROMPT], 12), tmp_path / "out", save_latents=False)
    assert "are free to use; ask for a smaller --size" in refuse(folder, tmp_path, frames=12)


def test_renew_changes_the_video_and_is_refused_without_a_change(folder: Path, tmp_path: Path) -> None:
    request = ("stream", "--checkpoint", folder, "--prompt", PROMPT, "--frames", 12)
    stderr = hiar(*request, "--renew", "--out", "out.mp4", folder=tmp_path, code=2).stderr
    assert stderr == "error: --renew: applies where the prompt changes; give a --change, or leave it out\n"
    stderr = hiar(*request, "--resize", "--out", "out.mp4", folder=tmp_path, code=2).stderr
    assert stderr == "error: --resize: applies to --video or --image; give one of them, or leave it out\n"
    videos = []
    for name, options in (("plain", ()), ("renewed", ("--renew",))):
        hiar(*request, "--change", f"6={OTHER}", *options, "--out", f"{name}.mp4", folder=tmp_path)
        videos.append(read_mp4(tmp_path / f"{name}.mp4"))
    assert len(videos[1]) == len(videos[0]) == 12
    assert not torch.equal(videos[0], videos[1])


def test_a_stream_has_the_requested_number_of_frames(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream(Request(folder, [PROMPT], 12), [], tmp_path / "v.mp4")
    assert len(read_mp4(tmp_path / "v.mp4")) == 12
    assert capsys.readouterr().err.splitlines()[-1].startswith("stream: 12/12 frames in ")


def test_progress_shows_the_seconds_of_the_first_and_of_the_last_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    clock = iter([100.0, 105.0, 107.0, 108.0, 112.0])  # the start, and the end of each block
    monkeypatch.setattr(streaming, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(streaming.Progress, "advance", lambda _, *given: shown.append(given))
    stream(Request(folder, [PROMPT], 12), [], tmp_path / "v.mp4")
    assert shown == [(BLOCK, {"first block (s)": 5.0, "block (s)": last}) for last in (5.0, 2.0, 1.0, 4.0)]


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptions() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

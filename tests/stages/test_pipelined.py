"""Impossible pipelines are refused before any process starts; in bf16 a pipeline makes the same video."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import hiar
from students import save_student

from hiar.io.progress import Progress
from hiar.io.reading import read_head
from hiar.io.video import read_mp4
from hiar.models.card import CARD, Walk, load_card
from hiar.models.generator import load_generator
from hiar.stages import pipelined
from hiar.stages.request import Request
from hiar.stages.sample import sample_latents

PROMPTS = ["a red disc moves left", "a blue disc moves up"]


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        ("distill", ("--processes", 5), "--processes = 5: the student takes 4 steps; use 1 to 4"),
        (
            "distill",
            ("--processes", 2, "--order", "block_first", "--context", "shared"),
            "--processes = 2: shared context goes from later steps back to earlier ones, so its steps cannot be "
            "split; leave it out, or use --order diagonal --context output",
        ),
        (
            "distill",
            ("--processes", 2, "--order", "block_first", "--context", "finished"),
            "--processes = 2: finished context waits for whole blocks, so its steps cannot be "
            "split; leave it out, or use --order diagonal --context output",
        ),
        (
            "teacher",
            ("--processes", 2),
            "--processes: the teacher is bidirectional and has no steps to split; leave it out",
        ),
    ],
)
def test_impossible_pipelines_are_refused_before_they_start(
    tmp_path: Path, stage: str, options: tuple[object, ...], words: str
) -> None:
    save_student(tmp_path / "student")
    card = load_card(tmp_path / "student").model_copy(update={"stage": stage})
    (tmp_path / "student" / CARD).write_text(card.model_dump_json())
    request = ("--checkpoint", "student", "--prompt", PROMPTS[0], "--frames", 12, "--out", "out")
    assert hiar("sample", *request, *options, folder=tmp_path, code=2).stderr == f"error: {words}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_later_batch_is_collected_behind_its_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the numbers of its videos; blocks of the next batch are left."""
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    given, *blocks = torch.randn(5, *source.block_shape, generator=torch.Generator().manual_seed(1)).split([1, 2, 2])
    out = tmp_path / "out"
    out.mkdir()
    with Progress("sample", 18, 0, unit="frames") as progress:
        arrivals = iter([*blocks, blocks[0]])
        latents = pipelined._collect(out, source, arrivals, range(16, 18), 18, 9, given, progress)
    assert torch.equal(latents, torch.cat([given.expand(2, -1, -1, -1, -1), *blocks], dim=2))
    assert len(list(arrivals)) == 1
    assert {path.name: len(read_mp4(path)) for path in out.iterdir()} == {
        "unfinished-0016.mp4": 9,
        "unfinished-0017.mp4": 9,
    }
    assert "sample: 18/18 frames" in capsys.readouterr().err


def test_the_film_of_a_batch_has_the_worlds_height_width_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SimpleNamespace(height=32, width=48, frames_per_second=16)
    source = SimpleNamespace(world=world, card=SimpleNamespace(video=SimpleNamespace(block=3)))
    monkeypatch.setattr(pipelined, "decoding", lambda *_: lambda latent: torch.zeros(3, 32, 48, 3, dtype=torch.uint8))
    with Progress("sample", 6) as progress:
        arrivals = iter(torch.zeros(2, 1, 4, 3, 4, 6))
        pipelined._collect(tmp_path, source, arrivals, range(1), 1, 6, None, progress)  # type: ignore[arg-type]
    (path,) = tmp_path.iterdir()
    assert read_mp4(path).shape == (6, 32, 48, 3)
    assert read_head(path).rate == 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes have a GPU each here")
def test_more_processes_than_cores_give_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(tmp_path / "student")
    monkeypatch.setattr(pipelined, "process_cores", lambda: 2)
    request = Request(tmp_path / "student", PROMPTS, 12)
    pipelined.plan_processes(request, 2)
    assert capsys.readouterr().err == ""
    pipelined.plan_processes(request, 3)
    warning = "walk: 3 processes share 2 core(s); --processes 2 is faster here\n"
    assert capsys.readouterr().err == warning


def test_in_bf16_a_video_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    """As on a GPU; the parts that Wan keeps in full precision stay so."""
    save_student(tmp_path / "student")
    walk = Walk(order="step_first", context="output")
    videos = []
    for dtype in (torch.float32, torch.bfloat16):
        source = load_generator(tmp_path / "student")
        source.denoiser.cast(dtype)
        assert source.denoiser.dtype == source.embed(PROMPTS).dtype == dtype
        assert source.denoiser.transformer.scale_shift_table.dtype == torch.float32
        assert source.denoiser.transformer.blocks[0].attn1.to_q.weight.dtype == dtype
        videos.append(sample_latents(source, PROMPTS, 12, walk, 0, range(2)).float())
    assert not torch.equal(*videos)
    assert (videos[1] - videos[0]).norm() < 0.05 * videos[0].norm()

"""What identifies a folder of samples, how a teacher's clip is made, and which requests are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from students import save_attentive_student, save_student, smoke_params
from torch import Tensor

from hiar.errors import UserError
from hiar.io.artifacts import content_hash, partial_of, read_manifest, write_manifest
from hiar.io.free import gigabytes
from hiar.io.process_group import ALONE, Ranks
from hiar.io.progress import Progress
from hiar.io.shards import read_shard
from hiar.models.card import CARD, walk_of
from hiar.models.denoiser import guided_x0
from hiar.models.generator import Generator, load_generator
from hiar.noise import normals
from hiar.rollout.cell import Rollout
from hiar.schedule import step_sigmas
from hiar.stages import computing, fitting, prompted, sample
from hiar.stages.common import Paths, sample_world
from hiar.stages.computing import Choice
from hiar.stages.fitting import Way
from hiar.stages.prompted import check_request, sample_key, sample_prompts
from hiar.stages.request import Request
from hiar.stages.sample import sample_latents
from hiar.stages.videos import decoding, film_path, write_latents, write_videos
from hiar.worlds.interface import FIRST_CLIP
from hiar.worlds.wan.codec import pixel_frames

PROMPTS = ["a red disc moves left", "a blue wide bar moves"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "student"
    save_attentive_student(folder)
    return folder


@pytest.fixture
def student(checkpoint: Path) -> Generator:
    return load_generator(checkpoint)


@pytest.fixture
def teacher(student: Generator) -> Generator:
    """The same network as a teacher, in four steps."""
    schedule = student.card.schedule.model_copy(update={"teacher_shift": 2.0})
    changed = {"stage": "teacher", "walk": None, "solver_steps": 4, "guidance": 3.0, "schedule": schedule}
    return replace(student, card=student.card.model_copy(update=changed))


def test_the_key_of_unfinished_samples_covers_all_that_decides_the_videos(
    checkpoint: Path, student: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, given = Request(checkpoint, PROMPTS, 12), torch.zeros(1, *student.block_shape)
    half = load_generator(checkpoint)
    half.denoiser.cast(torch.bfloat16)
    world = student.card.world.model_copy(update={"size": 32})
    small = replace(student, card=student.card.model_copy(update={"world": world}))

    def key(request: Request = usual, source: Generator = student, given: Any = None, latents: bool = False) -> str:
        walk, _ = check_request(source, request)
        return json.dumps(sample_key(source, request, walk, given, latents), sort_keys=True)

    keys = [
        key(),
        key(latents=True),
        key(given=given),
        key(given=given + 1),
        key(source=half),
        key(source=small),
        *(
            key(replace(usual, **changed))
            for changed in (
                {"prompts": PROMPTS[::-1]},
                {"captions": PROMPTS[::-1]},
                {"frames": 15},
                {"seed": 1},
                {"crf": 40},
                {"order": "diagonal"},
                {"context": "input"},
                {"level": 0.5},
            )
        ),
    ]
    keys.append(key(source=replace(student, content="another checkpoint's")))
    assert len({*keys}) == len(keys)
    assert key() == keys[0]
    monkeypatch.setattr(prompted, "code_hash", lambda *_: "of another version")
    assert key() not in keys


def test_samples_name_the_checkpoint_that_made_them_though_another_has_its_place_by_then(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, make = tmp_path / "student", prompted.make_videos
    shutil.copytree(checkpoint, folder)
    content = content_hash(folder)

    def make_and_retrain(*rest: Any, **named: Any) -> None:
        make(*rest, **named)
        shutil.rmtree(folder)
        save_student(folder, seed=1)

    monkeypatch.setattr(prompted, "make_videos", make_and_retrain)
    sample_prompts(Request(folder, PROMPTS[:1], 3), tmp_path / "out", save_latents=False)
    assert content_hash(folder) != content
    assert read_manifest(tmp_path / "out", "samples")["parents"] == {"checkpoint": content}


@torch.no_grad()
def test_a_teachers_clip_is_the_end_of_its_guided_flow(teacher: Generator) -> None:
    """Euler steps from the noise of each video's number, at the teacher's levels."""
    frames, card = teacher.card.video.frames, teacher.card
    assert card.schedule.teacher_shift != card.schedule.student_shift
    done: list[int] = []
    clips = sample_latents(teacher, PROMPTS, frames, None, 7, range(3, 5), done.append)
    assert len(done) == 4 and sum(done) == 2 * frames and max(done) - min(done) <= 1  # an equal share after each step
    text, nothing = teacher.embed(PROMPTS), teacher.embed_nothing().expand(2, -1, -1)
    x = normals("clip noise", 7, range(3, 5), (4, frames, 8, 8))
    for now, then in pairwise(step_sigmas(4, card.schedule.teacher_shift)):
        x0 = guided_x0(teacher.denoiser, x, now.expand(2), text, nothing, 3.0)
        x = x + (then - now) * (x - x0) / now
    torch.testing.assert_close(clips, x, rtol=1e-4, atol=1e-4)


def test_requests_that_a_teacher_cannot_meet_are_refused(teacher: Generator, checkpoint: Path) -> None:
    frames = teacher.card.video.frames
    request = Request(checkpoint, PROMPTS, frames)
    assert check_request(teacher, request) == (None, frames)
    for changed in ({"order": "diagonal"}, {"context": "output"}, {"level": 0.5}, {"level": 0.0}):
        with pytest.raises(UserError, match=r"^--order, --context, --level: the teacher is bidirectional"):
            check_request(teacher, replace(request, **changed))  # type: ignore[arg-type]
    for wrong in (frames - 3, frames + 3):
        with pytest.raises(UserError, match=f"^--frames = {wrong}: the teacher makes clips of {frames} frames"):
            check_request(teacher, replace(request, frames=wrong))


@pytest.mark.parametrize(("frames", "nearest"), [(0, 3), (1, 3), (7, 6), (8, 9)])
def test_the_nearest_number_of_frames_is_named(frames: int, nearest: int, student: Generator, checkpoint: Path) -> None:
    with pytest.raises(UserError, match=rf"^--frames = {frames}: .* of the block of 3 frames; try {nearest}$"):
        check_request(student, Request(checkpoint, PROMPTS, frames))


def test_the_manifest_says_which_prompts_generated_the_videos(checkpoint: Path, tmp_path: Path) -> None:
    """Extended prompts with short captions beside them, or the captions themselves."""
    request = Request(checkpoint, PROMPTS, 3, seed=5)
    for changed, source in (({}, "short"), ({"captions": PROMPTS[::-1]}, "extended")):
        sample_prompts(replace(request, **changed), tmp_path / source, save_latents=False)
        facts = read_manifest(tmp_path / source, "samples")
        assert (facts["generated_with"], facts["seed"]) == (source, 5)


def test_frames_that_are_not_finite_are_named_by_their_number(
    student: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = sample.walk_grid

    def spoiled(*given: Any, **options: Any) -> Any:
        for number, latent in walked(*given, **options):
            latent[1, 0, 1] = torch.nan if number == 2 else 0
            yield number, latent

    monkeypatch.setattr(sample, "walk_grid", spoiled)
    for given in (None, torch.zeros(1, *student.block_shape)):  # whose frames count, too
        with pytest.raises(UserError, match=r"^video 0006: its latents are not finite from frame 7 on"):
            sample_latents(student, PROMPTS, 12, student.card.walk, 0, range(5, 7), given=given)


def test_frames_that_are_given_count_as_done(student: Generator) -> None:
    done: list[int] = []
    given = torch.zeros(1, *student.block_shape).repeat(1, 1, 2, 1, 1)
    sample_latents(student, PROMPTS, 12, student.card.walk, 0, range(2), done.append, given)
    assert done == [12, 6, 6]


def test_pictures_that_are_not_finite_are_named_by_their_number(
    student: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever part of a video they occur."""
    decoder, parts = student.codec.decoding(), []

    def spoiled(latents: Tensor) -> Tensor:
        parts.append(latents)
        video = decoder(latents)
        video[:, :, 1] = torch.nan if len(parts) == 2 else 0
        return video

    monkeypatch.setattr(student.codec, "decoding", lambda: spoiled)
    decode = decoding(student, 6)
    decode(torch.zeros(4, 3, 8, 8))
    with pytest.raises(UserError, match=r"^video 0006: its pixels are not finite from frame 4 on"):
        decode(torch.zeros(4, 2, 8, 8))
    parts.clear()
    monkeypatch.setattr(type(student.codec), "pictures", staticmethod(pixel_frames))  # several for a latent frame
    decode = decoding(student, 6)
    decode(torch.zeros(4, 3, 8, 8))
    with pytest.raises(UserError, match=r"^video 0006: its pixels are not finite from frame 10 on"):
        decode(torch.zeros(4, 2, 8, 8))


def test_a_walked_student_walks_as_the_other_variant(tmp_path: Path) -> None:
    params = smoke_params(sample={"videos": 3, "frames": 6, "batch": 2}, report={"videos": 1})
    paths = Paths(tmp_path, 1)
    save_student(paths.distilled("hiar"))
    sample.run(params, tmp_path, 1, "walked", "hiar", "self-forcing")
    folder = paths.samples("walked", "hiar/self-forcing")
    made = read_manifest(folder, "samples")
    assert (made["model"], made["variant"], made["frames"]) == ("walked", "hiar/self-forcing", 6)
    walk = params.variant("self-forcing")
    assert (made["order"], made["context"]) == (walk.order, walk.context) != ("step_first", "output")
    student, first = load_generator(paths.distilled("hiar")), FIRST_CLIP["sample"]
    prompts = sample_world(params).prompts(seed=1, first=first, count=3)
    assert (folder / "captions.txt").read_text().splitlines() == prompts
    expected = sample_latents(student, prompts, 6, walk_of(walk), 1, range(3))
    torch.testing.assert_close(read_shard(folder / "latents.safetensors")["latents"], expected, rtol=1e-4, atol=1e-4)


def test_a_stage_makes_fewer_videos_at_a_time_and_step_by_step_if_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = smoke_params(sample={"videos": 3, "frames": 6, "batch": 3}, report={"videos": 1})
    walked: list[tuple[int, str, str]] = []

    def walk(denoiser: Any, rollout: Rollout, order: Any, given: Any, passes: Any) -> Iterator[Any]:
        walked.append((len(rollout.samples), order, passes))
        return sample_walk(denoiser, rollout, order, given, passes=passes)

    sample_walk, made, rollouts = sample.walk_grid, [], []
    monkeypatch.setattr(sample, "walk_grid", walk)
    monkeypatch.setattr(computing, "choose", lambda *given: rollouts.append(given[3]) or Choice())
    for free in (10**12, 210, 110):
        work = tmp_path / str(free)
        save_student(Paths(work, 1).distilled("hiar"))
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "free_bytes", lambda device, free=free: free / fitting.USABLE)
            patch.setattr(fitting, "decode_bytes", lambda source, frames: (0, 0))
            patch.setattr(fitting, "walk_bytes", lambda s, rollout, order, p: 100 if order == "step_first" else 200)
            patch.setattr(fitting, "ring_bytes", lambda source, grid, videos, caches=4: 10 * videos * caches)
            sample.run(params, work, 1, "distill", "hiar")
        made.append(read_shard(Paths(work, 1).samples("distill", "hiar") / "latents.safetensors")["latents"])
    assert walked == [(3, "diagonal", "batched"), *[(1, "diagonal", "batched")] * 3, *[(1, "step_first", "fused")] * 3]
    assert rollouts == [1, 3, 3]  # by which compiling pays or not
    assert "walk: step_first, " in capsys.readouterr().err
    torch.testing.assert_close(made[1:], made[:1] * 2, rtol=1e-4, atol=1e-4)


def test_all_videos_and_no_more_than_a_batch_at_a_time_must_fit(
    checkpoint: Path, student: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made, by the command and by the stage, which keeps the latents."""
    monkeypatch.setattr(prompted, "BATCH", 2)
    latent = 4 * 6 * math.prod(student.latent_size)
    params = smoke_params(sample={"videos": 3, "frames": 6, "batch": 2}, report={"videos": 1})
    shutil.copytree(checkpoint, Paths(tmp_path, 1).distilled("hiar"))
    request = Request(checkpoint, [*PROMPTS, PROMPTS[0]], 6)
    for field, free, make in (
        ("--frames", 3 * latent, lambda: sample_prompts(request, tmp_path / "out", save_latents=False)),
        ("params.yaml: sample.frames", 6 * latent, lambda: sample.run(params, tmp_path, 1, "distill", "hiar")),
    ):
        room = SimpleNamespace(total=10**12, used=0, free=free - 1)
        monkeypatch.setattr("shutil.disk_usage", lambda place, room=room: room)
        with pytest.raises(UserError, match=rf"^{field} = 6: the latents take {gigabytes(free)}, .* on the disk"):
            make()
    assert not [*tmp_path.rglob("*.mp4")]


def test_the_manifest_has_the_pictures_of_the_first_block_and_of_the_others(
    student: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which differ for Wan: scores look for jumps at the borders of blocks."""
    monkeypatch.setattr(type(student.codec), "pictures", staticmethod(pixel_frames))
    facts = sample.describe(student, student.card.walk, 6)
    assert (facts["first_block"], facts["block"], facts["frames"]) == (9, 12, 6)


class Echo(Ranks):
    """Ranks whose other processes always have the same values as this one."""

    def gather(self, own: Tensor) -> Tensor:
        return torch.stack([own] * self.size)


def test_two_processes_alternate_batches_and_leave_the_files_of_one(
    student: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, walk = [*PROMPTS, *PROMPTS, PROMPTS[0]], student.card.walk

    def make(name: str, ranks: Ranks) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        sample.make_videos(folder, student, prompts, 6, walk, 3, 2, "sample", ranks=ranks)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}

    whole = make("whole", ALONE)
    assert [*whole] == [*(f"{number:04d}.mp4" for number in range(5)), "latents.safetensors"]
    capsys.readouterr()
    second = make("shared", Echo(1, 2))
    assert [*second] == ["0002.mp4", "0003.mp4"]
    assert capsys.readouterr().err == ""
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").glob("*.mp4")}
    assert make("shared", Echo(0, 2)) == whole
    assert "sample: 30/30 frames" in capsys.readouterr().err  # counts those of other processes and of earlier runs
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_copies_on_one_machine_share_its_memory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def begin(*_: Any, way: Way, **options: Any) -> None:
        begun.append(way)
        raise KeyboardInterrupt

    monkeypatch.setattr(prompted, "make_videos", begin)
    monkeypatch.setattr(prompted, "_share", lambda *_: nullcontext(Echo(0, 2)))
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 400 / fitting.USABLE)
    monkeypatch.setattr(fitting, "decode_bytes", lambda source, frames: (0, 0))
    monkeypatch.setattr(fitting, "walk_bytes", lambda *_: 100)
    monkeypatch.setattr(fitting, "ring_bytes", lambda source, grid, videos, caches=4: 10 * videos * caches)
    with pytest.raises(KeyboardInterrupt):
        sample_prompts(Request(checkpoint, PROMPTS * 5, 6), tmp_path / "out", save_latents=False, copies=2)
    assert begun == [Way("diagonal", "batched", 2, 100)]  # alone, it would make four of its five at a time


def test_samples_of_the_same_command_are_not_made_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless a file is damaged; those of another command are replaced, which is said."""
    request, out = Request(checkpoint, PROMPTS, 6), tmp_path / "out"

    def made(request: Request = request) -> tuple[str, set[int]]:
        sample_prompts(request, out, save_latents=False)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(out))]
        return "".join(lines), {path.stat().st_ino for path in out.iterdir()}

    said, first = made()
    assert said == ""
    said, again = made()
    assert said == f"{out}: is complete already, by the same command; remove it to make it again"
    assert again == first
    (out / "captions.txt").write_text("damaged\n")
    replaced = f"{out}: what is there is replaced when the new artifact is complete"
    said, mended = made()
    assert said == replaced
    assert not mended & first
    said, other = made(replace(request, seed=5))
    assert said == replaced
    assert not other & mended


def test_a_teachers_clips_are_not_resumed_with_another_number_at_a_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by fewer or more copies: latents that are stored would be taken for those of other videos."""
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    card = json.loads((teacher / CARD).read_text())
    (teacher / CARD).write_text(json.dumps(card | {"stage": "teacher", "walk": None, "solver_steps": 1}))
    write_manifest(teacher, "checkpoint", stage="teacher", seed=0, variant=None)
    request = Request(teacher, [*PROMPTS, PROMPTS[0]], card["video"]["frames"])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prompted, "BATCH", 1)
        patch.setattr(prompted, "write_captions", interrupted)
        sample_prompts(request, tmp_path / "out", save_latents=True)
    capsys.readouterr()
    sample_prompts(request, tmp_path / "out", save_latents=True)
    assert "was started with other settings (batch); it is kept as" in capsys.readouterr().err
    sample_prompts(request, tmp_path / "undisturbed", save_latents=True)
    one, other = (read_shard(tmp_path / name / "latents.safetensors")["latents"] for name in ("out", "undisturbed"))
    assert torch.equal(one, other)


def test_a_further_process_makes_its_videos_as_the_first_one_has_settled(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at a time, in that order and with that kernel; only the first process ends the folder."""
    walked, chosen = [], []

    @contextmanager
    def second(copies: int | None, stall_seconds: float) -> Iterator[Ranks]:
        assert copies == 2
        yield Echo(1, 2)

    def walk(*given: Any, passes: str) -> Any:
        walked.append((given[2], passes, len(given[1].samples)))
        return walk_grid(*given, passes=passes)

    def compute(denoiser: Any, choice: Choice) -> Any:
        chosen.append(choice)
        return computing.computing(denoiser, choice)

    walk_grid = sample.walk_grid
    monkeypatch.setattr(prompted, "_share", second)
    monkeypatch.setattr(sample, "walk_grid", walk)
    monkeypatch.setattr(prompted, "computing", compute)
    folder = partial_of(tmp_path / "out")
    folder.mkdir()
    (folder / fitting.SETTLED).write_text(json.dumps(Way("step_first", "fused", 1)))
    (folder / computing.SETTLED).write_text(json.dumps(Choice("math")))
    sample_prompts(Request(checkpoint, [*PROMPTS, *PROMPTS], 6), tmp_path / "out", save_latents=True, copies=2)
    assert walked == [("step_first", "fused", 1)] * 2  # alone, it would walk diagonals, two videos at a time
    assert chosen == [Choice("math")]
    made = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert made == {"0001.mp4", "0003.mp4"}


def test_batches_with_stored_latents_are_only_decoded(student: Generator, tmp_path: Path) -> None:
    """Latents of any precision are stored in float32."""
    made = torch.randn(2, 4, 6, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    write_latents(tmp_path, 1, made)
    sample.make_videos(tmp_path, student, [*PROMPTS, *PROMPTS], 6, student.card.walk, 3, 2, "sample")
    latents = read_shard(tmp_path / "latents.safetensors")["latents"]
    assert latents.dtype == torch.float32
    assert torch.equal(latents[2:], made.float())
    assert not torch.equal(latents[:2], made.float())
    unfinished = film_path(tmp_path, 2, 4)  # of a process that was killed once the video was complete
    unfinished.write_bytes(b"a film")
    sample.make_videos(tmp_path, student, [*PROMPTS, *PROMPTS], 6, student.card.walk, 3, 2, "sample")
    assert not unfinished.exists()


def test_every_decoded_part_is_reported_with_its_frames(student: Generator, tmp_path: Path) -> None:
    """So no process waits longer than one part, however long the videos of a batch are."""
    chunk, done = student.codec.chunk, []
    write_latents(tmp_path, 0, torch.zeros(2, 4, chunk + 3, 8, 8))
    write_videos(tmp_path, student, 0, range(2), 2, advance=done.append)
    assert done == [chunk, 3] * 2


def test_half_of_a_frame_is_done_with_its_latent_and_half_with_its_pictures(
    student: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Recorded(Progress):
        def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
            counts.append(self.done)
            super().advance(count, metrics)
            counts.append(self.done)

    def make() -> list[int]:
        counts.clear()
        sample.make_videos(tmp_path, student, PROMPTS[:1], 6, student.card.walk, 3, 1, "sample")
        return sorted({*counts})

    monkeypatch.setattr(sample, "Progress", Recorded)
    assert make() == [0, 2, 3, 6]  # two blocks of three frames, then their pictures
    assert make() == [6]
    (tmp_path / "0000.mp4").unlink()
    assert make() == [3, 6]


def test_processes_exchange_signals_with_every_decoded_part(student: Generator, tmp_path: Path) -> None:
    exchanges: dict[int, int] = {}

    class Counted(Echo):
        def gather(self, own: Tensor) -> Tensor:
            exchanges[parts] = exchanges.get(parts, 0) + 1
            return super().gather(own)

    for parts in (1, 3):
        folder, frames = tmp_path / str(parts), parts * student.codec.chunk
        folder.mkdir()
        write_latents(folder, 0, torch.zeros(2, 4, frames, 8, 8))
        sample.make_videos(folder, student, PROMPTS, frames, student.card.walk, 3, 2, "sample", ranks=Counted(0, 2))
    assert exchanges[3] == exchanges[1] + 2 * (3 - 1)


def test_all_processes_stop_at_the_first_error(student: Generator, tmp_path: Path) -> None:
    """A process without a batch left learns of another's error, and leaves nothing that looks complete."""

    class FailingPeer(Ranks):
        turns = 0

        def gather(self, own: Tensor) -> Tensor:
            if own.dtype is torch.uint8:
                self.__class__.turns += 1  # each turn ends by exchanging the errors
                line = b"video 0004: its latents are not finite" if self.turns == 3 else b""
                other = torch.frombuffer(bytearray(line.ljust(len(own), b"\0")), dtype=torch.uint8)
                return torch.stack([other, own])
            return torch.stack([own] * self.size)

    prompts, walk = [*PROMPTS, *PROMPTS, PROMPTS[0]], student.card.walk
    with pytest.raises(UserError, match="process 0: video 0004: its latents are not finite"):
        sample.make_videos(tmp_path, student, prompts, 6, walk, 3, 1, "sample", ranks=FailingPeer(1, 2))
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["0001.mp4", "0003.mp4"]

"""The room that viewers share, without a server: what each is sent, and what is kept of the last minute."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import av
import pytest
import torch
from students import save_student

from hiar.errors import UserError
from hiar.io.artifacts import write_manifest
from hiar.io.video import fragments
from hiar.live import students
from hiar.live.minute import minute_card, minute_mp4
from hiar.live.room import Room, Viewer
from hiar.live.students import Student, end_all, find_students
from hiar.live.timeline import Timeline
from hiar.live.walking import blocks_ahead
from hiar.live.wire import write_message
from hiar.models.card import Walk, load_card
from hiar.models.generator import load_generator
from hiar.worlds.interface import FIRST_CLIP

PROMPT, OTHER = "a red disc moves left", "a blue wide bar moves"
FPS, BLOCK = 12, 3
SEED = 7  # the room's; the student was trained with another one


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room") / "student"
    save_student(folder)
    return folder


@pytest.fixture
def room(checkpoint):
    """A room with two students, which have been asked for a video and have made nothing yet."""
    header = fragments(64, 64, FPS)[0]
    students = [Student(name, checkpoint, load_card(checkpoint), header=header) for name in ("one", "other")]
    opened = Room(students, Timeline(BLOCK, BLOCK, FPS, lead=1.0), PROMPT, SEED)
    opened.begin(PROMPT, SEED, None, None)
    opened.watched(0.0)
    return opened


def block_of(number, prompt=PROMPT, pictures=BLOCK):
    return {"kind": "block", "block": number, "prompt": prompt, "pictures": pictures, "latent": f"hash {number}"}


def outbox_of(viewer):
    """The contents of a viewer's outbox: the kinds of messages, and the first byte of binary ones."""
    return [
        one["kind"] if isinstance(one, dict) else one[0]
        for one in iter(lambda: None if viewer.outbox.empty() else viewer.outbox.get_nowait(), None)
    ]


def test_the_last_minute_is_kept_and_no_block_more(checkpoint):
    student = Student("one", checkpoint, load_card(checkpoint))
    for number in range(400):
        student.keep(block_of(number, pictures=7), b"", FPS)
        kept = student.made - student.pieces[0].start
        assert kept == pytest.approx(7 / FPS * len(student.pieces))
        assert kept == pytest.approx(student.made) if student.made < 60 else 60 <= kept < 60 + 7 / FPS + 1e-6


def test_the_video_of_a_minute_begins_with_it(checkpoint):
    header, fragment_of = fragments(64, 64, FPS, apart=True)
    student = Student("one", checkpoint, load_card(checkpoint), header=header)
    for number in range(4):
        frames = torch.full((BLOCK, 64, 64, 3), 40 * number, dtype=torch.uint8)
        student.keep(block_of(number), fragment_of(frames), FPS)
    student.pieces.popleft()  # as if it were older than a minute
    with av.open(io.BytesIO(minute_mp4(student.header, student.pieces))) as video:
        shown = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in video.decode(video=0)]
    times, levels = zip(*shown, strict=True)
    assert times == pytest.approx([number / FPS for number in range(3 * BLOCK)])
    assert levels == pytest.approx([level for level in (40, 80, 120) for _ in range(BLOCK)], abs=3)


def test_the_card_of_a_minute_lists_only_its_own_videos_and_prompts(room):
    student = room.students[0]

    def make(first, stop, prompt):
        for number in range(first, stop):
            student.keep(block_of(number, prompt), b"", FPS)
        room.timeline.made = student.made
        room.watched(student.made)

    make(0, 4, PROMPT)
    begun = room.timeline.until
    room.begin(OTHER, 5, "block_first", "finished")
    make(4, begun + 2, OTHER)
    room.change(PROMPT)
    later = room.timeline.until
    room.begin(PROMPT, 8, None, None)
    room.begin(PROMPT, 9, None, None)  # replaces the one before, which has not begun
    for _ in range(300):
        room.change(PROMPT)
    card = minute_card(room, student)
    assert (card["blocks"], card["trained_seed"]) == ([0, begun + 1], 0)
    assert (card["stage"], card["world"], card["frames_per_second"]) == ("distill", "shapes", FPS)
    assert [card["contexts_renewed"], minute_card(replace(room, renew=True), student)["contexts_renewed"]] == [
        *(False, True),
    ]
    assert [(one["from_block"], one["seed"], one["walk"]["order"]) for one in card["videos"]] == [
        (0, SEED, "step_first"),
        (begun, 5, "block_first"),
    ]
    assert card["prompts"] == [{"from_block": 0, "prompt": PROMPT}, {"from_block": 4, "prompt": OTHER}]
    make(begun + 2, later + 1, PROMPT)
    assert [one["seed"] for one in minute_card(room, student)["videos"]] == [SEED, 5, 9]
    for _ in range(begun):
        student.pieces.popleft()
    card = minute_card(room, student)
    assert card["blocks"] == [begun, later]
    assert [(one["from_block"], one["seed"]) for one in card["videos"]] == [(begun, 5), (later, 9)]
    assert len(card["latents_sha256"]) == later - begun + 1
    student.pieces.popleft()
    assert [one["seed"] for one in minute_card(room, student)["videos"]] == [5, 9]


def test_a_viewer_that_falls_behind_gets_no_messages_after_a_gap(room):
    slow, quick = Viewer(asyncio.Queue(2)), Viewer()
    room.viewers |= {slow, quick}
    for _ in range(4):
        room.change(OTHER)
    assert slow.behind
    slow.outbox.get_nowait()
    room.change(PROMPT)
    assert (slow.outbox.qsize(), quick.outbox.qsize(), quick.behind) == (1, 5, False)


def test_suggested_prompts_are_those_of_samples(room):
    """Whose clips no training has seen. Each is listed once and valid."""
    suggested = room.greeting()["suggestions"]
    samples = students.world_of(room.students).prompts(seed=0, first=FIRST_CLIP["sample"], count=20)
    assert suggested == list(dict.fromkeys(samples))[: len(suggested)]
    assert len(suggested) > 4
    for prompt in suggested:
        room.change(prompt)


def test_students_begin_when_the_first_viewer_comes(room):
    asleep = Room(room.students, Timeline(BLOCK, BLOCK, FPS, lead=1.0), PROMPT, SEED)
    asleep.begin(PROMPT, SEED, None, None)
    assert asleep.timeline.until == 0
    asleep.enter(Viewer())
    assert asleep.timeline.until == FPS // BLOCK  # blocks of one second, the lead


def test_a_late_viewer_gets_the_watched_block_and_broken_students(room):
    for number in range(4):
        for student in room.students:
            student.keep(block_of(number), b"data", FPS)
    room.timeline.made = 1.0
    room.watched(2.5 * BLOCK / FPS)
    room.students[1].line = "other: has ended"
    room.enter(viewer := Viewer())
    assert outbox_of(viewer) == ["hello", 0, "block", 0, "block", 0, 1, "block", 1, "block", 1, "broken"]


@pytest.mark.parametrize("seed", [-1, 2**63, True, 1.0, "1", None])
def test_invalid_seeds_are_refused(room, seed):
    with pytest.raises(UserError, match="seed: should be a whole number"):
        room.restart(seed, None, None)
    assert room.seed == SEED


def test_prompts_are_trimmed_and_limited_and_the_history_is_bounded(room):
    room.restart(2**63 - 1, None, None)
    room.change(f"{OTHER}\n".ljust(2000))
    assert room.prompt == room.history[-1]["prompt"] == OTHER
    with pytest.raises(UserError, match="has 2001 characters"):
        room.change(PROMPT.ljust(2001))
    room.restart(0, None, None)
    assert room.history[-1]["prompt"] == OTHER
    for _ in range(250):
        room.change(PROMPT)
    assert len(room.history) < 250


def test_an_invalid_walk_or_prompt_changes_nothing(room):
    before = list(room.history)
    with pytest.raises(UserError, match="--order = step_first"):
        room.restart(5, "step_first", "finished")
    with pytest.raises(UserError, match="elephant"):
        room.begin("an elephant", 5, None, None)
    # Possible for the first student only: the second was trained to wait for finished blocks.
    waits = Walk(order="block_first", context="finished")
    room.students[1].card = room.students[1].card.model_copy(update={"walk": waits})
    with pytest.raises(UserError, match="--order = step_first"):
        room.restart(5, "step_first", None)
    assert (room.prompt, room.seed, room.order, list(room.history)) == (PROMPT, SEED, None, before)


def test_a_prompt_holds_from_the_first_block_that_no_student_has_begun(room):
    quick = Walk(order="block_first", context="finished")
    room.students[1].card = room.students[1].card.model_copy(update={"walk": quick})
    begun = [blocks_ahead(student.card, student.card.walk) for student in room.students]
    assert begun[0] > begun[1]
    for _ in range(2):
        assert room.change(OTHER) == room.timeline.until + begun[0]  # not a block later than necessary
        assert room.history[-1]["seconds"] == (room.timeline.until + begun[0]) * BLOCK / FPS
        room.students.reverse()
    room.restart(0, None, None)
    assert room.history[-1]["seconds"] == room.timeline.until * BLOCK / FPS > room.timeline.watched
    room.restart(0, "block_first", "finished")  # by which no walk has begun a block beyond the one just finished
    assert room.change(PROMPT) == room.timeline.until


def commands_to(student):
    """The commands that a student's process is told from now on."""
    student.process = SimpleNamespace(stdin=io.BytesIO())
    return lambda: [json.loads(line) for line in student.process.stdin.getvalue().splitlines()]


def test_students_are_told_what_viewers_ask_for(room):
    told = [commands_to(student) for student in room.students]
    begun = room.timeline.until
    room.restart(3, "block_first", "finished")
    change = room.change(OTHER)
    room.timeline.made = 1.0
    room.watched(0.5)
    for commands in told:
        assert commands() == [
            {
                "do": "restart",
                "block": begun,
                "renew": False,
                "prompt": PROMPT,
                "seed": 3,
                "order": "block_first",
                "context": "finished",
            },
            {"do": "prompt", "text": OTHER, "block": change},
            {"do": "until", "block": begun + FPS // BLOCK // 2},
        ]


def test_a_page_is_greeted_with_what_holds_now(room):
    """Not with what held when the room was opened."""
    room.restart(3, "block_first", "finished")
    room.change(OTHER)
    for number in range(4):
        for student in room.students:
            student.keep(block_of(number), b"", FPS)
    room.timeline.made = 1.0
    room.watched(0.5)
    hello = room.greeting()
    now = {"prompt": OTHER, "seed": 3, "order": "block_first", "context": "finished", "watched": 0.5}
    fixed = {"width": 64, "height": 64, "fps": FPS, "block": BLOCK, "lead": 1.0, "longest": 2000}
    assert hello.items() >= (now | fixed).items()
    assert [one["walk"] for one in hello["students"]] == 2 * [
        {"order": "block_first", "context": "finished", "level": None}
    ]
    assert [note["kind"] for note in hello["history"]] == ["restart", "restart", "prompt"]


def test_a_broken_student_is_reported_and_holds_up_nobody(room, tmp_path):
    """The room has made as much as the slowest student that still works."""
    fragment = bytes(range(256)) * 2**9  # as large as fragments of large frames
    for name, count in (("one", 2), ("other", 5)):
        with (tmp_path / name).open("wb", buffering=0) as file:
            for number in range(count):
                write_message(file, block_of(number, f"{PROMPT} \N{MIDDLE DOT}"), fragment)
            if name == "one":
                write_message(file, {"kind": "refused", "line": "no"})
                write_message(file, {"kind": "broken", "line": "one: is out of memory"})
    room.viewers.add(viewer := Viewer())

    async def follow(number):
        student = room.students[number]
        student.process = await asyncio.create_subprocess_exec(
            "cat", tmp_path / student.name, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await room._follow(number)
        await student.process.wait()

    async def both():
        room.students[1].made = 0.25
        await follow(0)
        assert room.timeline.made == 0.25
        room.students[1].made = 0.0
        await follow(1)

    asyncio.run(both())
    assert room.timeline.made == 5 * BLOCK / FPS
    kept = {(piece.message["prompt"], piece.data) for student in room.students for piece in student.pieces}
    assert kept == {(f"{PROMPT} \N{MIDDLE DOT}", fragment)}
    assert outbox_of(viewer) == [*2 * ["block", 0], "refused", "broken", *5 * ["block", 1], "broken"]
    lines = [student.line for student in room.students]
    assert lines == ["one: is out of memory", "other: its process has ended; start `hiar live` again"]
    room.change(OTHER)  # no student is left to receive it


def test_a_student_that_waited_for_a_broken_one_goes_on(room, tmp_path):
    """It has made all that it may, so it sends nothing more from which the room could learn how much is made."""
    (tmp_path / "empty").touch()
    slow, quick = room.students
    for student, count in ((slow, 2), (quick, 4)):
        for number in range(count):
            student.keep(block_of(number), b"", FPS)
    room.timeline.made = slow.made
    room.watched(quick.made)
    assert room.timeline.watched == slow.made
    before = room.timeline.until

    async def ends():
        pipe = asyncio.subprocess.PIPE
        slow.process = await asyncio.create_subprocess_exec("cat", tmp_path / "empty", stdin=pipe, stdout=pipe)
        await room._follow(0)
        await slow.process.wait()

    asyncio.run(ends())
    room.watched(quick.made)
    assert room.timeline.watched == quick.made
    assert room.timeline.until > before


def test_students_are_ended_even_if_they_do_not_read_their_input(room, monkeypatch):
    monkeypatch.setattr(students, "ENDING_SECONDS", 0.5)

    async def ended(*command):
        pipe = asyncio.subprocess.PIPE
        for student in room.students:
            student.process = await asyncio.create_subprocess_exec(*command, stdin=pipe)
        await asyncio.wait_for(end_all(room.students), 60)
        return [student.process.returncode for student in room.students]

    assert asyncio.run(ended("cat")) == [0, 0]  # it ends when its input is closed
    assert asyncio.run(ended("sleep", "600")) == [-signal.SIGKILL] * 2


def test_a_teacher_is_refused(checkpoint, tmp_path):
    teacher = load_generator(checkpoint)
    card = teacher.card.model_copy(update={"stage": "teacher", "variant": None, "walk": None})
    (tmp_path / "teacher").mkdir()
    replace(teacher, card=card).save(tmp_path / "teacher")
    write_manifest(tmp_path / "teacher", "checkpoint")
    with pytest.raises(UserError, match="teacher: is a teacher, which makes whole clips; name an init"):
        find_students([checkpoint, tmp_path / "teacher"])


def test_students_that_cannot_be_shown_together_are_refused(checkpoint, tmp_path):
    def saved(name, **overrides):
        save_student(tmp_path / name, **overrides)
        return tmp_path / name

    smaller = saved("smaller", world={"radius": 12.0})
    with pytest.raises(UserError, match=r"smaller: its world is not that of .*student; show it on a page of its own"):
        find_students([checkpoint, smaller])
    longer = saved("longer", video={"block": 5})
    with pytest.raises(UserError, match=r"longer: its video\.block is not that of .*student"):
        find_students([checkpoint, longer])
    namesake = tmp_path / "elsewhere" / "student"
    shutil.copytree(checkpoint, namesake)
    assert [one.name for one in find_students([checkpoint, namesake])] == [str(checkpoint), str(namesake)]
    assert [one.name for one in find_students([namesake])] == ["student"]
    third = shutil.copytree(checkpoint, tmp_path / "third")
    three = [checkpoint, namesake, third]
    assert [one.name for one in find_students(three)] == [str(folder) for folder in three]
    assert len(find_students(2 * [checkpoint, third])) == 4  # as many as are shown side by side

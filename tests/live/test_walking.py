"""A video whose prompt changes while it is made equals one whose changes are known from the start."""

from __future__ import annotations

import asyncio
import hashlib
import io
import queue
from contextlib import ExitStack
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from students import save_attentive_student
from tiny import live_tensor_bytes, relative_error

from hiar.errors import UserError
from hiar.grid import fastest
from hiar.live.student import _make, _Making
from hiar.live.walking import begin, blocks_ahead
from hiar.live.wire import read_message
from hiar.memory.sampling import decode_bytes, walk_bytes
from hiar.models.card import Walk
from hiar.models.generator import load_generator
from hiar.stages import fitting
from hiar.stages.stream import clean_blocks, stream_rollout
from hiar.stages.videos import decoding

PROMPT, OTHER, THIRD = "a red disc moves left", "a blue wide bar moves", "a green tall bar moves"
FIRST = 7  # the video's first block on the timeline


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walking") / "student"
    save_attentive_student(folder)
    return load_generator(folder)


@pytest.mark.parametrize(
    ("order", "context"),
    [("step_first", "output"), ("diagonal", "input"), ("block_first", "finished"), ("block_first", "shared")],
)
@pytest.mark.parametrize("renew", [False, True], ids=["kept", "renewed"])
def test_a_video_changed_while_it_is_made_equals_one_with_known_changes(student, order, context, renew):
    walk = Walk(order=order, context=context)
    ahead = blocks_ahead(student.card, walk)
    walking = begin(student, PROMPT, 5, order, context, FIRST, renew)
    made, changes = [], {}
    for number in range(12):
        if number in (2, 3, 3 + ahead, 8):
            text = {2: OTHER, 8: PROMPT}.get(number, THIRD)
            walking.change(text, FIRST + number + ahead)
            changes[number + ahead] = text
        for refused in ("a red elephant moves", "moves left a red disc"):  # an unknown word, or an unknown word order
            with pytest.raises(UserError, match=refused.split()[2]):
                walking.change(refused, FIRST + number + ahead)
        made.append(walking.next_block()())
    rollout = stream_rollout(student, PROMPT, changes, walk, None, 5)
    known = list(islice(clean_blocks(student, walk, rollout, renew=renew), 12))
    decode = decoding(student)
    for number, ((prompt, latent, pictures), expected) in enumerate(zip(made, known, strict=True)):
        assert prompt == next((changes[start] for start in sorted(changes, reverse=True) if start <= number), PROMPT)
        if renew:  # equal to rounding: a walk with a known end has fewer blocks in its last passes
            assert relative_error(latent, expected) < 1e-5
        else:
            assert torch.equal(latent, expected)
            assert torch.equal(pictures, decode(expected))


def test_a_change_comes_as_soon_as_the_walk_allows(student):
    """Earlier blocks have begun already."""
    walk = Walk(order="step_first", context="output")
    ahead = blocks_ahead(student.card, walk)
    assert ahead == student.card.schedule.student_steps - 1
    assert blocks_ahead(student.card, Walk(order="block_first", context="finished")) == 0


def test_prompts_that_no_block_needs_are_forgotten(student):
    walking = begin(student, PROMPT, 0, None, None, 0)
    for number in range(40):
        walking.change((PROMPT, OTHER)[number % 2], walking.made + 3)
        walking.next_block()
    assert len(walking.changes) < 12
    assert len(walking.prompts) < 13


def test_only_the_memory_to_decode_one_block_has_to_be_free(student, monkeypatch):
    """A live video is decoded block by block; longer parts would need more memory than there is."""
    walk = student.card.walk
    walked = walk_bytes(student, stream_rollout(student, PROMPT, {}, walk, None, 0), *fastest(walk.context))
    block, part = (decode_bytes(student, frames)[0] for frames in (student.card.video.block, student.codec.chunk))
    assert block < walked + block < part
    monkeypatch.setattr(fitting, "walk_bytes", lambda *_: walked)  # counting it again would take time
    for free, fits in ((walked + block, True), (block, False)):
        monkeypatch.setattr(fitting, "free_bytes", lambda device, free=free: (free + 1) / fitting.USABLE)
        if fits:
            begin(student, PROMPT, 0, None, None, 0).next_block()()
            continue
        with pytest.raises(UserError, match="GB are free to use"):
            begin(student, PROMPT, 0, None, None, 0)


def test_an_impossible_walk_or_prompt_is_refused(student):
    with pytest.raises(UserError, match="--order = step_first: finished context needs"):
        begin(student, PROMPT, 0, "step_first", "finished", 0)
    with pytest.raises(UserError, match="left"):  # known words in an unknown order
        begin(student, "moves left a red disc", 0, None, None, 0)


def test_commands_do_not_pile_up_while_a_student_rests(student):
    making = _Making(student, ExitStack())
    restart = {"do": "restart", "block": 4, "prompt": PROMPT, "seed": 0, "order": None, "context": None, "renew": False}
    for number in range(50):
        making.take({"do": "prompt", "text": OTHER, "block": 7})
        if number % 3 == 0:
            making.take(restart | {"seed": number})
            making.take({"do": "prompt", "text": THIRD, "block": 7})
    assert [command["do"] for command in making.pending] == ["restart", "prompt"]
    assert making.pending[0]["seed"] == 48
    making.take(
        {"do": "prompt", "text": THIRD, "block": 4}
    )  # the new video's first block: no walk begins with another one
    assert [command["do"] for command in making.pending] == ["restart", "prompt"]
    assert making.pending[1]["block"] == 4


def test_a_new_video_walks_as_it_was_asked_to(student):
    making = _Making(student, ExitStack(), block=4)
    asked = {"prompt": OTHER, "seed": 8, "order": "block_first", "context": "finished", "renew": False}
    making.take({"do": "restart", "block": 4, **asked})
    making.prepare(lambda line: None)
    walking = making.walking
    assert walking is not None
    assert walking.first == 4
    walk = Walk(order="block_first", context="finished")
    assert walking.walk == walk
    made = walking.next_block()()
    (known,) = islice(clean_blocks(student, walk, stream_rollout(student, OTHER, {}, walk, None, 8)), 1)
    assert made.prompt == OTHER
    assert torch.equal(made.latent, known.float())


class Resting(queue.SimpleQueue):
    """Commands to a student, which calls ``rest`` before it waits for one."""

    def __init__(self, rest):
        self.rest = rest

    def get(self):
        if self.empty():
            self.rest()
        return super().get()


@pytest.mark.parametrize("ahead", [0, 1], ids=["CPU", "GPU"])
def test_a_blocks_seconds_are_those_in_which_it_was_made(student, ahead, monkeypatch):
    """Not those for which the student rested, nor those in which the one before was made. With a clock of its own."""
    now, taken, outlet = [100.0], iter([2.0, 3.0, 5.0]), io.BytesIO()
    monkeypatch.setattr("hiar.live.student.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("hiar.live.student.lead", lambda device: ahead)

    def encode(pictures):
        now[0] += next(taken)
        return b""

    def rest():
        """Half an hour passes after the second block; the third is the last one."""
        commands.put({"do": "until", "block": 3} if now[0] == 105.0 else None)
        now[0] += 1800.0

    commands = Resting(rest)
    commands.put(
        {"do": "restart", "block": 0, "prompt": PROMPT, "seed": 0, "order": None, "context": None, "renew": False}
    )
    commands.put({"do": "until", "block": 2})
    _make(student, commands, outlet, encode, lambda prompt, pictures: {})

    async def seconds():
        inlet = asyncio.StreamReader()
        inlet.feed_data(outlet.getvalue())
        return [(await read_message(inlet))[0]["seconds"] for _ in range(3)]

    assert asyncio.run(seconds()) == [2.0, 3.0, 5.0]


@pytest.mark.parametrize("ahead", [0, 1], ids=["CPU", "GPU"])
def test_a_prompt_sent_while_blocks_are_made_holds_from_its_block_on(student, ahead, monkeypatch):
    """A student reads prompts between blocks, not only once it has made all blocks that it may.

    Before it rests it sends the blocks made ahead: here the last of six.
    """
    monkeypatch.setattr("hiar.live.student.lead", lambda device: ahead)
    restart = {"do": "restart", "block": 0, "prompt": PROMPT, "seed": 0, "order": None, "context": None, "renew": False}
    commands, outlet = queue.SimpleQueue(), io.BytesIO()
    for command in (restart, {"do": "until", "block": 6}, {"do": "prompt", "text": OTHER, "block": 4}):
        commands.put(command)
    shown = []

    def figures(prompt, pictures):
        shown.append(prompt)
        if len(shown) == 2 - ahead:  # during its second block
            commands.put({"do": "prompt", "text": THIRD, "block": 5})
        elif len(shown) == 6:
            commands.put(None)
        return {}

    _make(student, commands, outlet, lambda pictures: b"", figures)
    assert shown == 4 * [PROMPT] + [OTHER, THIRD]

    async def messages():
        inlet = asyncio.StreamReader()
        inlet.feed_data(outlet.getvalue())
        return [(await read_message(inlet))[0] for _ in range(6)]

    blocks = asyncio.run(messages())
    walk = student.card.walk
    changes = {4: OTHER, 5: THIRD}
    known = islice(clean_blocks(student, walk, stream_rollout(student, PROMPT, changes, walk, None, 0)), 6)
    hashes = [hashlib.sha256(latent.float().numpy().tobytes()).hexdigest() for latent in known]
    assert [(one["block"], one["latent"]) for one in blocks] == list(enumerate(hashes))


def test_the_memory_of_a_video_is_free_before_the_next_begins(student, monkeypatch):
    """Both videos' caches together may not fit on a GPU, and free memory is checked before the first block."""
    held, making = [], _Making(student, ExitStack())

    def recording(*arguments):
        held.append(live_tensor_bytes())
        return begin(*arguments)

    monkeypatch.setattr("hiar.live.student.begin", recording)
    for seed in range(2):
        making.take(
            {
                "do": "restart",
                "block": 0,
                "prompt": PROMPT,
                "seed": seed,
                "order": None,
                "context": None,
                "renew": False,
            }
        )
        making.prepare(lambda line: None)
        assert making.walking is not None
        for _ in range(3):
            making.walking.next_block()
    assert held[1] - held[0] < (live_tensor_bytes() - held[0]) / 10  # only a few positions stay

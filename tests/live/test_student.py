"""The process of one student, controlled as by the server."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import sys
from itertools import islice

import psutil
import pytest
import torch
from commands import environment
from live_server import PATIENCE
from students import save_student

from hiar.errors import UserError
from hiar.live.student import _device as own_device
from hiar.live.students import Student, end_all, start_all
from hiar.live.wire import command_line, read_message
from hiar.models.card import load_card
from hiar.models.generator import load_generator
from hiar.stages.stream import clean_blocks, stream_rollout

PROMPT = "a red disc moves left"
RESTART = {"do": "restart", "block": 0, "prompt": PROMPT, "seed": 3, "order": None, "context": None, "renew": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "student"
    save_student(folder)
    return folder


# Prints while a checkpoint is loaded, as some libraries do.
TALKS = """
import os
import sys


def talk(event, details):
    if event == "open" and str(details[0]).startswith({checkpoint!r}):
        os.write(1, b"a line of a library")


sys.addaudithook(talk)
"""


async def start_student(checkpoint, folder):
    talking = folder / "talking"
    talking.mkdir()
    (talking / "sitecustomize.py").write_text(TALKS.format(checkpoint=str(checkpoint)))
    base = environment()
    given = {"checkpoint": checkpoint, "number": 0, "crf": 31, "params": folder / "params.yaml"}
    options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hiar.live", *options),
        cwd=folder,
        env=base | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{talking}:{base['PYTHONPATH']}"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def test_a_student_makes_the_blocks_it_may_and_ends_with_its_input(checkpoint, tmp_path):
    """Ctrl-C in a terminal reaches it as well, but does not end it: the server does."""

    async def command():
        process = await start_student(checkpoint, tmp_path)
        messages = [await read_message(process.stdout)]
        process.send_signal(signal.SIGINT)
        for command in (RESTART, {"do": "prompt", "text": "an elephant", "block": 1}, {"do": "until", "block": 2}):
            process.stdin.write(command_line(command))
        messages += [await read_message(process.stdout) for _ in range(3)]
        memory = psutil.Process(process.pid).memory_info().rss
        process.stdin.close()
        rest = await process.stdout.read()
        return messages, memory, rest, await process.stderr.read(), await process.wait()

    messages, memory, rest, complaints, code = asyncio.run(asyncio.wait_for(command(), PATIENCE))
    assert [message["kind"] for message, _ in messages] == ["ready", "refused", "block", "block"]
    assert "elephant" in messages[1][0]["line"]
    source = load_generator(checkpoint)
    made = clean_blocks(source, source.card.walk, stream_rollout(source, PROMPT, {}, source.card.walk, None, 3))
    hashes = [hashlib.sha256(latent.float().numpy().tobytes()).hexdigest() for latent in islice(made, 2)]
    assert [message["latent"] for message, _ in messages[2:]] == hashes
    assert b" crf=31.0 " in messages[2][1]  # x264 writes its settings before the first picture
    assert messages[-1][0]["memory"] == pytest.approx(memory, rel=0.2)
    assert (rest, code) == (b"", 0)
    assert b"Traceback" not in complaints
    assert b"a line of a library" in complaints


def test_students_have_gpus_of_their_own_while_there_are_enough(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    assert [own_device(number).index for number in range(4)] == [device.index for device in used] == [0, 1, 2, 0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device(1).type == "cpu"


def test_a_checkpoint_that_cannot_be_loaded_is_one_line(checkpoint, tmp_path):
    (weights,) = (checkpoint / "codec").glob("*.safetensors")
    content = weights.read_bytes()

    async def command():
        process = await start_student(checkpoint, tmp_path)
        message = await read_message(process.stdout)
        return message, await process.stderr.read(), await process.wait()

    weights.write_bytes(content[:-1])
    try:
        (message, data), complaints, code = asyncio.run(asyncio.wait_for(command(), PATIENCE))
    finally:
        weights.write_bytes(content)
    assert (message["kind"], data, code) == ("broken", b"", 2)
    assert str(weights) in message["line"]
    assert "\n" not in message["line"]
    assert b"Traceback" not in complaints


def test_one_student_that_cannot_be_loaded_is_reported_and_all_end(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (weights,) = (tmp_path / "damaged" / "codec").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    card = load_card(checkpoint)
    students = [Student("whole", checkpoint, card), Student("damaged", tmp_path / "damaged", card)]

    async def command():
        try:
            await start_all(students, 20, tmp_path / "params.yaml")
        finally:
            assert students[0].header  # it was ready
            await end_all(students)

    with pytest.raises(UserError, match=str(weights)):
        asyncio.run(asyncio.wait_for(command(), PATIENCE))
    assert [student.process.returncode for student in students] == [0, 2]

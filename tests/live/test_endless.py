"""`hiar live` for ten minutes and under stress: memory, a killed server, viewers that come and go, floods."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from commands import ROOT
from live_server import PATIENCE, TOKEN, Watcher, children_of, live, memory_of
from students import save_attentive_student, save_student
from waiting import wait_until
from websockets.exceptions import ConnectionClosed

from benchmarks.live import ARGUMENTS, main

OTHER = "a blue wide bar moves"
FLAT = 1.05

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("endless")
    save_attentive_student(folder / "hiar")
    save_student(folder / "forcing", "block_first", "finished")
    return [folder / "hiar", folder / "forcing"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine (apt-get install chromium)")
def test_ten_minutes_without_stalls_or_growing_memory(students, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "live.json"
    checkpoints = [f"--checkpoint={folder}" for folder in students]
    assert main([*checkpoints, "--minutes", "10", "--out", str(out), "--picture", str(tmp_path / "live.png")]) == 0
    seen = json.loads(out.read_text())
    assert seen["ranges"] == 1
    assert seen["longest_buffer"] < 30
    for name in ("server_bytes", "browser_bytes"):
        settled, end = seen[name]
        assert end <= FLAT * settled, name
    assert max(seen["stalls"]) == 0, f"load {max(look['load'] for look in seen['looks'])}"
    assert max(seen["latencies"]) <= 1.5 + seen["lead"]


def test_students_end_with_their_server(students, tmp_path):
    with live(*students, folder=tmp_path) as (process, address):
        processes = children_of(process.pid)
        assert len(processes) == 2
        with Watcher(address) as viewer:
            viewer.watch(2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in processes))


def test_a_killed_student_is_reported_and_the_other_goes_on(students, tmp_path):
    with live(*students, folder=tmp_path) as (process, address), Watcher(address) as viewer:
        viewer.watch(2)
        psutil.Process(children_of(process.pid)[1]).kill()
        broken = viewer.until("broken")
        before = viewer.made(broken["student"] ^ 1)
        while viewer.made(broken["student"] ^ 1) < before + 20:
            viewer.send(kind="watched", seconds=viewer.blocks[broken["student"] ^ 1][-1]["end"])
            viewer.until("block")


def test_viewers_that_come_and_go_leave_nothing(students, tmp_path):
    draw = random.Random(0)
    with live(*students, folder=tmp_path) as (process, address), Watcher(address) as stays:
        stays.watch(260)  # by now a full minute is kept
        server, here = psutil.Process(process.pid), []
        settled = memory_of(process.pid), server.num_fds()
        for number in range(300):
            if here and (len(here) == 20 or draw.random() < 0.5):
                leaving = here.pop(draw.randrange(len(here)))
                # Some close their connection properly, others just drop it.
                leaving.socket.close() if draw.random() < 0.5 else leaving.socket.socket.close()
            else:
                here.append(Watcher(address).__enter__())
            if number % 10 == 0:
                stays.watch(stays.made(0) + 2)
        for each in here:
            each.socket.close()
        stays.watch(stays.made(0) + 20)
        wait_until(lambda: server.num_fds() <= settled[1])
        assert memory_of(process.pid) <= FLAT * settled[0]


def test_floods_do_not_stop_other_viewers(students, tmp_path):
    """A thousand messages from one viewer, as many requests, and more viewers than allowed."""
    with live(*students, folder=tmp_path) as (_, address), Watcher(address) as stays:
        stays.watch(4)
        with Watcher(address) as flood, ThreadPoolExecutor(32) as pool:
            for _ in range(1000):
                flood.send(kind="prompt", text=OTHER)
            answers = list(pool.map(lambda _: _status(address), range(1000)))
            assert set(answers) <= {200, 503, None}
            assert 200 in answers
            stays.watch(stays.made(0) + 8)
            for _ in range(40):
                flood.until("taken")
        crowd = []
        with pytest.raises(ConnectionClosed) as refused:
            for _ in range(40):
                crowd.append(Watcher(address))
                crowd[-1].receive()
        assert refused.value.rcvd.code == 4429
        stays.watch(stays.made(0) + 8)
        for each in crowd:
            each.socket.close()


def _status(address: str) -> int | None:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None  # refused


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine (apt-get install chromium)")
def test_the_page_says_that_the_server_has_gone_and_comes_back(students, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS, timeout=1000 * PATIENCE
        )
        page = browser.new_page()

        def until(condition):
            wait_until(lambda: page.evaluate(condition), lambda: page.wait_for_timeout(50))

        plays = "[...document.querySelectorAll('video')].some(v => v.currentTime > 1 && !v.paused)"
        with live(students[0], folder=tmp_path) as (process, address):
            page.goto(address)
            page.get_by_label("Token").fill(TOKEN)
            page.keyboard.press("Enter")
            until(plays)
            # A viewer who pauses while others watch resumes where they are, without buffering everything in between.
            page.get_by_role("button", name="Pause").click()
            with Watcher(address) as ahead:
                ahead.watch(ahead.until("block")["block"] + 400)
                until("document.querySelector('video').buffered.length == 1")
                assert page.evaluate("(b => b.end(0) - b.start(0))(document.querySelector('video').buffered)") < 62
                page.get_by_role("button", name="Play").click()
                until("document.querySelector('video').currentTime > 40 && !document.querySelector('video').paused")
            until(plays)
            process.kill()
            process.wait()
        until("document.getElementById('state').textContent == 'The server does not answer. Trying again.'")
        port = re.search(r":(\d+)/", address)[1]
        with live(students[0], folder=tmp_path, options=("--port", port)):
            until("document.getElementById('state').textContent.startsWith('Playing')")
            until(plays)
        browser.close()

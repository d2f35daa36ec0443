"""Watch the page of ``hiar live`` in Chromium: stalls, memory, latency. ``python -m benchmarks.live --help``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.command import Parser, check_out
from hiar.errors import UserError
from hiar.io.artifacts import code_version
from hiar.io.files import write_json
from hiar.io.hardware import hardware

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE = 300.0  # seconds
EVERY = 15.0  # seconds between two looks at the page, at most
STEP = 2  # looks between two changes of the prompt
LATENCY = re.compile(r"From your prompt to its picture: ([\d.]+) s")
PLAYS = "[...document.querySelectorAll('video')].some((video) => video.currentTime > 0)"
LOOK = """() => ({
    seconds: Math.min(...[...document.querySelectorAll('video')].map((video) => video.currentTime)),
    ranges: [...document.querySelectorAll('video')].map((video) => video.buffered.length),
    buffered: [...document.querySelectorAll('video')].map((video) => video.buffered.end(0) - video.buffered.start(0)),
    dropped: [...document.querySelectorAll('video')].map((video) => video.getVideoPlaybackQuality().droppedVideoFrames),
    stalls: [...document.querySelectorAll('[data-stalls]')].map((value) => Number(value.dataset.stalls)),
    heap: performance.memory.usedJSHeapSize,
})"""


def watch(checkpoints: Sequence[Path], minutes: float, lead: float, picture: Path | None) -> dict[str, Any]:
    """What a browser sees of students side by side in ``minutes``, with a new prompt after every `STEP` looks.

    Raises UserError without Chromium, and for checkpoints that cannot be shown.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise UserError("chromium: is not on this machine; install it (apt-get install chromium)")
    looks: list[dict[str, Any]] = []
    latencies: list[float] = []
    with serving(checkpoints, lead) as (process, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=1000 * PATIENCE)
        page = browser.new_page(viewport={"width": 1100, "height": 1000}, device_scale_factor=1)
        page.set_default_timeout(1000 * PATIENCE)
        came = time.monotonic()
        page.goto(address)
        while not page.evaluate(PLAYS):  # the page's content security policy forbids wait_for_function
            page.wait_for_timeout(20)
        shown = time.monotonic() - came
        while time.monotonic() - came < 60 * minutes:
            page.wait_for_timeout(1000 * min(EVERY, 60 * minutes / 6))
            answer = LATENCY.match(page.inner_text("#answer"))
            look = page.evaluate(LOOK) | {"at": time.monotonic() - came, "load": os.getloadavg()[0]}
            look["latency"] = float(answer[1]) if answer else None
            # Proportional set size counts shared memory once: Chromium's processes share much.
            look["server"] = sum(each.memory_full_info().pss for each in _tree(process.pid))
            look["browser"] = sum(each.memory_full_info().pss for each in _browser(process.pid))
            looks.append(look)
            if len(looks) % STEP == 1:
                if answer:
                    latencies.append(float(answer[1]))
                buttons = page.locator("#suggestions button")
                buttons.nth(len(looks) // STEP % buttons.count()).click()
        if picture is not None:
            page.wait_for_timeout(1000)
            page.screenshot(path=picture, full_page=True)
        browser.close()
    part = max(1, len(looks) // 5)

    def settled(name: str) -> list[int]:
        """The medians of the second fifth and of the last one: memory rises until garbage is collected."""
        return [int(median(look[name] for look in some)) for some in (looks[part : 2 * part] or looks, looks[-part:])]

    return {
        "hardware": hardware("auto"),
        "code": code_version(),
        "minutes": minutes,
        "lead": lead,
        "seconds_to_picture": shown,
        "seconds_played": [looks[0]["at"], looks[0]["seconds"], looks[-1]["at"], looks[-1]["seconds"]],
        "stalls": looks[-1]["stalls"],
        "dropped": looks[-1]["dropped"],
        "ranges": max(max(look["ranges"]) for look in looks),
        "longest_buffer": max(max(look["buffered"]) for look in looks),
        "latencies": latencies,
        "server_bytes": settled("server"),
        "browser_bytes": settled("browser"),
        "heap_bytes": settled("heap"),
        "looks": looks,
    }


@contextmanager
def serving(checkpoints: Sequence[Path], lead: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `hiar live`; yields its process and the page's address. Raises UserError if it does not start."""
    command = [sys.executable, "-m", "hiar", "live", "--port", "0", "--lead", str(lead)]
    for checkpoint in checkpoints:
        command += ["--checkpoint", str(checkpoint)]
    own = {name: value for name, value in os.environ.items() if name != "HIAR_LIVE_TOKEN"}
    with subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = re.match(r"live: (\S+)", process.stdout.readline())
            if said is None:
                raise UserError("--checkpoint: cannot be shown; see the line above")
            yield process, said[1]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def _tree(process: int) -> list[psutil.Process]:
    own = psutil.Process(process)
    return [own, *own.children(recursive=True)]


def _browser(server: int) -> list[psutil.Process]:
    own = {each.pid for each in _tree(server)}
    return [
        each for each in psutil.Process().children(recursive=True) if each.pid not in own and "chrom" in each.name()
    ]


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="a student; repeat for up to 4")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to watch")
    parser.add_argument("--lead", type=float, default=1.5, help="seconds of video made ahead")
    parser.add_argument("--picture", type=Path, help="PNG file for a screenshot of the page at the end")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        result = watch(options.checkpoint, options.minutes, options.lead, options.picture)
        write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in result.items():
        if name != "looks":
            print(f"{name}: {json.dumps(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`hiar live` as a process, over real connections and in a real browser."""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import av
import pytest
from commands import ROOT
from live_server import PATIENCE, TOKEN, Watcher, live
from students import save_attentive_student, save_student
from waiting import wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hiar.errors import UserError
from hiar.io.artifacts import content_hash
from hiar.io.outputs import CRF
from hiar.live import serving
from hiar.live.serving import serve
from hiar.models.generator import load_generator
from hiar.stages.stream import clean_blocks, stream_rollout
from hiar.worlds.interface import FIRST_CLIP

PROMPT, OTHER = "a red disc moves left", "a blue wide bar moves"
LEAD, SEED = 1.0, 4
BLOCK_SECONDS = 0.25
OWN_SOURCES = {"'none'", "'self'", "data:", "blob:"}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("live")
    save_attentive_student(folder / "hiar")
    save_student(folder / "forcing", "block_first", "finished")
    return [folder / "hiar", folder / "forcing"]


@pytest.fixture(scope="module")
def address(students, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(ROOT / "params.yaml", folder)
    with live(*students, folder=folder, options=("--prompt", PROMPT, "--lead", LEAD, "--seed", SEED)) as (_, address):
        yield address


def latents_of(
    folder: Path, prompt: str, changes: dict[int, str], seed: int, blocks: int, renew: bool = False
) -> list[str]:
    """Hashes of the blocks that `hiar stream` makes, the same as `hiar sample`'s (tests/stages/test_stream.py)."""
    source = load_generator(folder)
    walk = source.card.walk
    assert walk is not None
    made = clean_blocks(source, walk, stream_rollout(source, prompt, changes, walk, None, seed), renew=renew)
    return [hashlib.sha256(latent.float().numpy().tobytes()).hexdigest() for latent in islice(made, blocks)]


def test_latents_equal_those_of_hiar_stream(address, students):
    with Watcher(address) as viewer:
        assert [student["name"] for student in viewer.hello["students"]] == ["hiar", "forcing"]
        viewer.watch(6)
        viewer.send(kind="prompt", text=OTHER)
        change = viewer.until("prompt")["block"]
        viewer.watch(change + 4)
        viewer.send(kind="restart", seed=9, order=None, context=None)
        begun = viewer.until("restart")["block"]
        viewer.watch(begun + 4)
        for number, folder in enumerate(students):
            # x264 writes its settings before the first picture.
            assert f" crf={CRF}.0 ".encode() in viewer.videos[number]
            made = [block["latent"] for block in viewer.blocks[number]]
            assert [block["block"] for block in viewer.blocks[number]] == list(range(len(made)))
            assert made[:begun] == latents_of(folder, PROMPT, {change: OTHER}, SEED, begun)
            assert made[begun:] == latents_of(folder, OTHER, {}, 9, len(made) - begun)
            with av.open(io.BytesIO(viewer.videos[number])) as video:
                times = [frame.time for frame in video.decode(video=0)]
            assert times == pytest.approx([frame / 12 for frame in range(3 * len(made))])
        figures = viewer.blocks[0][-1]["figures"]
        assert set(figures) == {"saturation", "sharpness", "good", "visible"}


def test_contexts_are_renewed_at_a_prompt_change_on_request(students, tmp_path):
    """Another checkpoint takes the student's place meanwhile, and is not shown."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(students[1], folder := tmp_path / "forcing")
    options = ("--prompt", PROMPT, "--lead", LEAD, "--seed", SEED, "--renew")
    with live(folder, folder=tmp_path, options=options) as (_, address), Watcher(address) as viewer:
        viewer.watch(4)
        shutil.rmtree(folder)
        save_student(folder, "block_first", "finished", seed=1)
        viewer.send(kind="prompt", text=OTHER)
        change = viewer.until("prompt")["block"]
        viewer.watch(change + 4)
        made = [block["latent"] for block in viewer.blocks[0]]
    assert latents_of(folder, PROMPT, {}, SEED, 1) != made[:1]
    renewed, kept = (
        latents_of(students[1], PROMPT, {change: OTHER}, SEED, len(made), renew) for renew in (True, False)
    )
    assert made == renewed
    assert made[change + 1] != kept[change + 1]


def test_a_late_viewer_joins_the_others_and_nothing_is_made_without_viewers(address):
    with Watcher(address) as viewer:
        viewer.watch(8)
    with Watcher(address) as viewer:
        start = viewer.hello["watched"]
        assert start > 0
        while viewer.blocks.get(1, [{"end": 0.0}])[-1]["end"] < start + LEAD:  # makes as much as allowed, and no more
            viewer.until("block")
        assert viewer.blocks[0][0]["end"] > start
        with av.open(io.BytesIO(viewer.videos[0])) as video:
            assert next(video.decode(video=0)).time == pytest.approx(viewer.blocks[0][0]["start"])
        time.sleep(1.0)
        viewer.send(kind="prompt", text=OTHER)
        viewer.until("taken")
        for blocks in viewer.blocks.values():
            assert blocks[-1]["end"] <= start + LEAD + BLOCK_SECONDS
    with Watcher(address) as viewer:
        assert viewer.hello["watched"] == start


def test_invalid_messages_are_answered_and_the_video_goes_on(address):
    with Watcher(address) as viewer:
        for text, line in (
            ("a red elephant moves", "elephant"),
            ("", "prompt: is empty"),
            (10_000 * "a", "prompt: has 10000 characters; use up to 2000"),
            (None, "prompt: is empty"),
            ("<script>alert(1)</script>", "unknown word"),
        ):
            viewer.send(kind="prompt", text=text)
            assert line in viewer.until("refused")["line"]
        for seed, order, context in ((-1, None, None), (0.5, None, None), (0, "up", None), (0, None, ["x"])):
            viewer.send(kind="restart", seed=seed, order=order, context=context)
            assert viewer.until("refused")["line"]
        viewer.send(kind="restart", seed=0, order="step_first", context="finished")
        assert "--order = step_first" in viewer.until("refused")["line"]
        for data in (
            b"\x00\x01",
            "no json",
            "[]",
            "3",
            '{"kind": "dance"}',
            '{"kind": "watched", "seconds": "x"}',
            "[" * 9000,
        ):
            viewer.socket.send(data)
        for _ in range(6):
            assert "message: " in viewer.until("refused")["line"]
        for seconds in (1e300, 10**400, -1, None):
            viewer.send(kind="watched", seconds=seconds)
        viewer.socket.send('{"kind": "watched", "seconds": NaN}')
        viewer.send(kind="prompt", text="\ud800 \x00 \x1b[31m")
        viewer.until("refused")
        viewer.send(kind="prompt", text=PROMPT)
        viewer.until("taken")
        viewer.socket.send("x" * 100_000)  # larger than the limit per message
        with pytest.raises(ConnectionClosed):
            while True:
                viewer.receive()
    with Watcher(address) as viewer:
        viewer.watch(viewer.until("block")["block"] + 4)


def test_wrong_tokens_origins_and_hosts_are_turned_away(address):
    assert ipaddress.ip_address(urlsplit(address).hostname).is_loopback  # no other machines, unless requested
    for token in ("", "wrong", None, TOKEN[:-1], TOKEN + "!", "\ud800"):
        with pytest.raises(ConnectionClosed) as closed:
            Watcher(address, token=token).receive()  # type: ignore[arg-type]
        assert closed.value.rcvd.code == 4401
    for origin in ("http://elsewhere.example", f"{address[:-1]}.example", "null"):
        with pytest.raises(InvalidStatus):
            Watcher(address, origin=origin)
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    for host, code in (("elsewhere.example", 403), ("localhost", 101), ("[::1]:1", 101)):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
        connection.request(
            "GET", "/live", headers=upgrade | {"Host": host, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        )
        assert connection.getresponse().status == code
        connection.close()
    for headers, code in (({"Host": "elsewhere.example"}, 421), ({}, 401)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{address}minute/0.mp4", headers=headers))
        assert refused.value.code == code


def test_the_pages_headers_allow_no_foreign_sources_and_no_embedding(address):
    """Nor the guessing of content types."""
    for name in ("", "live.js", "live.css"):
        with urllib.request.urlopen(address + name) as answer:
            headers = dict(answer.headers)
        policy = dict(one.split(maxsplit=1) for one in headers["content-security-policy"].split(";"))
        assert {source for sources in policy.values() for source in sources.split()} <= OWN_SOURCES
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_the_last_minute_is_saved_with_its_card(address, students):
    with Watcher(address) as viewer:
        viewer.watch(viewer.until("block")["block"] + 2)

    def saved(name: str) -> bytes:
        request = urllib.request.Request(f"{address}minute/{name}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["x-content-type-options"] == "nosniff"
            return answer.read()

    card, video = json.loads(saved("1.json")), saved("1.mp4")
    first, last = card["blocks"]
    assert (card["checkpoint"], card["content"]) == ("forcing", content_hash(students[1]))
    assert card["videos"][-1]["walk"] == {"order": "block_first", "context": "finished", "level": None}
    assert len(card["latents_sha256"]) == last - first + 1
    with av.open(io.BytesIO(video)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([frame / 12 for frame in range(3 * (last - first + 1))])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        saved("2.mp4")


def test_invalid_commands_start_no_student(students, tmp_path, monkeypatch):
    def served(*checkpoints, host="127.0.0.1", port=0, prompt=None):
        serve(checkpoints, prompt, 0, host, port, 1.0, print)

    monkeypatch.setattr(serving, "start_all", lambda *_: pytest.fail("students are started, which takes long"))
    monkeypatch.delenv("HIAR_LIVE_TOKEN", raising=False)
    with pytest.raises(UserError, match="no such file; name a checkpoint folder"):
        served(tmp_path)
    for host in ("0.0.0.0", "::", "192.0.2.1", ""):
        with pytest.raises(UserError, match=f"--host = {host}: is reachable from other machines; set HIAR_LIVE_TOKEN"):
            served(students[0], host=host)
        monkeypatch.setenv("HIAR_LIVE_TOKEN", "")  # the same as none
    with pytest.raises(UserError, match="--checkpoint: is given 5 times"):
        served(*5 * students[:1])
    with pytest.raises(UserError, match="elephant"):
        served(students[0], prompt="an elephant")
    taken_line = "^--host, --port = 127.0.0.1, [0-9]+: address already in use; choose another --port, or --host$"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=taken_line):
        served(students[0], port=taken.getsockname()[1])
    for token in ("short", 15 * "x"):
        monkeypatch.setenv("HIAR_LIVE_TOKEN", token)
        with pytest.raises(UserError, match=f"HIAR_LIVE_TOKEN: has {len(token)} characters; give it at least 16"):
            served(students[0])
    monkeypatch.setenv("HIAR_LIVE_TOKEN", 16 * "x")
    with pytest.raises(UserError, match="elephant"):  # the token is accepted
        served(students[0], host="0.0.0.0", prompt="an elephant")


def test_without_a_prompt_the_first_one_is_drawn_from_the_seed(students, monkeypatch):
    calls = []

    async def note(_, prompt, seed, *rest):
        calls.append((prompt, seed))

    monkeypatch.setattr(serving, "_serve", note)
    world = load_generator(students[0]).world
    for seed in (0, 7):
        serve(students[:1], None, seed, "127.0.0.1", 0, 1.0, print)
    assert calls == [(world.prompts(seed=seed, first=FIRST_CLIP["sample"], count=1)[0], seed) for seed in (0, 7)]
    assert calls[0][0] != calls[1][0]


def test_a_server_on_all_addresses_shows_the_machines_name(students, monkeypatch):
    addresses = []

    async def note(*arguments):
        addresses.append(urlsplit(next(one for one in arguments if str(one).startswith("http"))))

    monkeypatch.setattr(serving, "_serve", note)
    monkeypatch.setenv("HIAR_LIVE_TOKEN", TOKEN)
    for host, named in (("0.0.0.0", socket.gethostname()), ("127.0.0.1", "127.0.0.1")):
        serve(students[:1], PROMPT, 0, host, 0, 1.0, print)
        assert addresses[-1].hostname == named.lower()
        assert addresses[-1].port
    assert serving._address("::1", 8765) == "http://[::1]:8765/"  # in brackets, or the port would be a part of it


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_other_names_are_refused_only_where_this_machine_alone_is_served(students, monkeypatch, host, loopback):
    async def start(found, *_):
        found[0].pictures = (3, 3)

    def served(room, token, *, loopback):
        raise UserError(f"{token}, loopback = {loopback}")

    monkeypatch.setattr(serving, "start_all", start)
    monkeypatch.setattr(serving.Room, "open", lambda room: None)
    monkeypatch.setattr(serving, "application", served)
    monkeypatch.setenv("HIAR_LIVE_TOKEN", TOKEN)
    with pytest.raises(UserError, match=f"^{TOKEN}, loopback = {loopback}$"):
        serve(students[:1], PROMPT, 0, host, 0, 1.0, print)


@pytest.fixture
def page(address):
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=1000 * PATIENCE)
        page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        yield page
        browser.close()


def until(page, condition):
    wait_until(lambda: page.evaluate(condition), lambda: page.wait_for_timeout(50))


EVERY = "document.querySelectorAll('video').length == 2 && [...document.querySelectorAll('video')].every"


def test_the_page_plays_changes_prompts_and_fits_its_window(page):
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('state').textContent == 'This token is wrong.'")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    until(page, f"{EVERY}(v => v.readyState >= 2)")
    page.evaluate("window.start = document.querySelector('video').currentTime")
    until(page, f"{EVERY}(v => v.currentTime > start + 1 && v.buffered.length == 1 && !v.paused)")
    page.get_by_label("Prompt", exact=False).first.fill("a red elephant moves")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('answer').textContent.includes('elephant')")
    page.get_by_label("Prompt", exact=False).first.fill(OTHER)
    page.keyboard.press("Enter")
    until(page, "document.getElementById('answer').textContent.startsWith('From your prompt to its picture: ')")
    page.get_by_role("button", name="Pause").click()
    until(page, f"{EVERY}(v => v.paused)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for width, scheme in ((390, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Play").click()
    until(page, f"{EVERY}(v => !v.paused)")
    assert page.complaints == []

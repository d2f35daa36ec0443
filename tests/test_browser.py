"""The report in a real browser: it plays, logs nothing to the console, and makes no network requests."""

import shutil

import pytest
from sampled import sampled_workspace, small_params
from waiting import wait_until

from hiar.stages import report, score

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE = 300  # seconds, for a loaded machine
EVERY = "[...document.querySelectorAll('video')].every"

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    params = small_params(seeds=[0])
    sampled_workspace(folder, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_TRACKING", "off")
        score.run(params, folder)
        report.run(params, folder)
    return (folder / "reports" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=1000 * PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Opens the report; records its requests and its console messages and errors."""
    contexts = []

    def visit(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        until(page, f"{EVERY}(v => v.readyState >= 2)")
        return page

    yield visit
    for context in contexts:
        context.close()


def until(page, condition):
    """Wait for a condition; playwright's wait_for_function is blocked by the page's own security policy."""
    wait_until(lambda: page.evaluate(condition), lambda: page.wait_for_timeout(20))


def test_videos_play_without_network_requests(visit):
    page = visit()
    until(page, f"{EVERY}(v => v.currentTime > 0.2)")
    assert page.locator("video").count() == 14  # two prompts; true world, teacher, two inits, three students
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    assert page.complaints == []


def test_videos_start_over_together(visit):
    page = visit()
    page.evaluate(f"window.ends = 0; {EVERY}(v => v.addEventListener('ended', () => window.ends++) ?? true)")
    page.get_by_role("combobox", name="Speed").select_option("2")
    until(page, "window.ends > 0")
    until(page, f"{EVERY}(v => v.currentTime > 0 && v.currentTime < 0.8 && !v.paused)")


def test_one_button_pauses_all_and_one_slider_moves_all(visit):
    page = visit()
    page.get_by_role("button", name="Pause").click()
    until(page, f"{EVERY}(v => v.paused && !v.seeking)")
    page.get_by_role("slider").fill("400")
    until(page, f"{EVERY}(v => !v.seeking)")
    places = page.evaluate("[...document.querySelectorAll('video')].map(v => [v.currentTime, v.duration])")
    moment = 0.4 * max(duration for _, duration in places)
    assert [time for time, _ in places] == pytest.approx([moment % duration for _, duration in places], abs=0.01)
    page.get_by_role("button", name="Play").click()
    until(page, f"{EVERY}(v => !v.paused)")


def test_readers_who_want_no_motion_get_none(visit):
    page = visit(reduced_motion="reduce")
    page.get_by_role("button", name="Play").wait_for(timeout=1000 * PATIENCE)
    assert page.evaluate(f"{EVERY}(v => v.paused)")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_is_readable(visit, width, scheme):
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(LOWEST_CONTRAST) >= 4.5  # WCAG AA


LOWEST_CONTRAST = """() => {
    const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number)
            .map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = light(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll('p, small, th, td, figcaption, dt, dd')].map((element) => {
        const text = light(getComputedStyle(element).color);
        return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
    }));
}"""

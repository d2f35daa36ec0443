"""The profile drift, its networks in their own process: known answers, the same for any batches, and refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from vbench_toys import build_networks, lay_weights

from hiar.errors import RunFailed, UserError
from hiar.metrics.segments import segment_centres
from hiar.profiles.drift import RECIPE, open_profile
from hiar.profiles.lite import DriftLite
from hiar.vbench.asking import device_of
from hiar.vbench.doctor import known_names
from hiar.vbench.frames import FILES

METRICS = ("musiq", "clip_iqa", "dinov2", "lpips", "saturation", "sharpness")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """An environment with toy networks, and files in place of their weights."""
    folder = tmp_path_factory.mktemp("drift")
    return build_networks(folder / "venv"), lay_weights(folder / "weights", "drift")


@pytest.fixture
def installed(toys, monkeypatch):
    environment, weights = toys
    monkeypatch.setenv("HIAR_VBENCH", str(environment))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    return environment, weights


@pytest.fixture(scope="module")
def drift(toys):
    """The profile; its networks run until these tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_VBENCH", str(toys[0]))
        patch.setenv("VBENCH_CACHE_DIR", str(toys[1]))
        return open_profile()


def colored(reds, greens, blues, side=64):
    """A video with one colour per frame, of these levels."""
    levels = torch.stack([torch.as_tensor(one) for one in (reds, greens, blues)], dim=-1)
    return levels.to(torch.uint8)[:, None, None].expand(-1, side, side + 26, -1).contiguous()


def measured(profile, frames):
    found = profile.observer.measure(profile.observer.look(frames[None], None, [""]))
    return {name: value.item() for name, value in found.items()}


def slope(course):
    """The slope of the five segments' means, computed in another way than by the code."""
    means = [part.mean() for part in np.array_split(np.asarray(course, np.float64), 5)]
    return np.polyfit(segment_centres(len(course), 5).numpy(), means, 1)[0]


def test_each_metric_follows_its_toy_networks_known_series(drift):
    number = torch.arange(60)
    red, green, blue = 40 + 2 * number, 200 - 3 * number, number**2 // 16
    found = measured(drift, colored(red, green, blue))
    assert found["musiq_trend"] == pytest.approx(100 * 2 * 60 / 255, rel=1e-5)
    assert found["musiq_first_last"] == pytest.approx(100 * 2 * 51 / 255, rel=1e-5)
    assert found["clip_iqa_trend"] == pytest.approx(-3 * 60 / 255, rel=1e-5)
    turn = np.cos(np.diff(blue.numpy() / 255))
    assert found["dinov2"] == pytest.approx(turn.mean(), rel=1e-6)
    assert found["dinov2_trend"] == pytest.approx(slope(turn), rel=0.01)
    steps = (2 + 3 + np.diff(blue.numpy())) / 3 / 255
    assert found["lpips_segment_5"] == pytest.approx(steps[-11:].mean(), rel=1e-4)
    assert found["lpips_trend"] == pytest.approx(slope(steps), rel=0.01)
    assert found["lpips_vde"] > 0 > found["dinov2_trend"]


def test_dinov2_sees_the_middle_of_a_frame(drift):
    """224 of 256 pixels of the shorter side: blinking at the border alone has no effect, but in the middle it has."""
    still = colored(*[torch.full((12,), level) for level in (90, 60, 30)])
    border, middle = still.clone(), still.clone()
    border[::2, :2, :, 2] = border[::2, -2:, :, 2] = border[::2, :, :10, 2] = border[::2, :, -10:, 2] = 250
    middle[::2, 20:44, 30:60, 2] = 250
    assert measured(drift, border)["dinov2"] == pytest.approx(1, abs=1e-6)
    assert measured(drift, border)["lpips"] > 0.01
    assert measured(drift, middle)["dinov2"] < 0.999


def test_the_score_is_drift_lites_form_of_the_papers_six_measures(drift):
    number = torch.arange(30)
    frames = colored(60 + 4 * number, 100 + number % 2, 90 - number)
    found, lite = measured(drift, frames), DriftLite()
    assert tuple(RECIPE.weights) == METRICS
    same = lite.measure(lite.look(frames[None], None, [""]))
    for name in ("saturation", "sharpness"):
        for end in ("", "_trend", "_drift", "_floor", "_first_last", "_vde", "_segment_1"):
            assert found[name + end] == pytest.approx(same[name + end].item(), nan_ok=True)
    for end, form in (("", "drift"), ("_floor", "floor")):
        sizes = {name: np.mean([found[f"{name}_segment_{part}"] for part in range(1, 6)]) for name in METRICS}
        shares = [found[f"{name}_{form}"] / sizes[name] / 6 if sizes[name] else 0 for name in METRICS]
        assert found[f"drift{end}"] == pytest.approx(sum(shares))
    still = measured(drift, colored(*[torch.full((30,), level) for level in (90, 60, 30)]))
    assert still["drift"] == pytest.approx(0, abs=1e-9)
    assert (still["dinov2"], still["lpips"]) == (pytest.approx(1), 0)


def test_parts_and_batches_give_the_same_bits(drift):
    noise = torch.Generator().manual_seed(0)
    videos = torch.randint(0, 256, (2, 20, 64, 64, 3), generator=noise, dtype=torch.uint8)
    whole = drift.observer.look(videos, None, ["", ""])
    assert {name: course.shape for name, course in whole.items()} == {
        name: (2, 19 if name in ("dinov2", "lpips") else 20) for name in METRICS
    }
    for cut in (1, 7):
        before, found = None, []
        for part in videos.split(cut, dim=1):
            found.append(drift.observer.look(part, before, ["", ""]))
            before = part[:, -1:]
        assert all(torch.equal(torch.cat([one[name] for one in found], dim=1), whole[name]) for name in METRICS)


def test_the_record_names_files_versions_and_device(drift, toys):
    record = drift.record
    held = {one["file"]: one["sha256"] for one in record["models"]}
    assert held == {name: hashlib.sha256((toys[1] / name).read_bytes()).hexdigest() for name in FILES}
    assert record["environment"] == {"pyiqa": "0.1", "torchmetrics": "1.9"}
    assert record["device"] == ("cuda" if torch.cuda.is_available() else "cpu")  # the toys use our torch
    assert record["metrics"].keys() == record["weights"].keys() == set(METRICS)
    assert (record["score"], record["segments"], drift.least_side) == ("drift", 5, 64)


@pytest.mark.parametrize(("ours", "theirs"), [(False, True), (True, False)])
def test_networks_run_where_their_own_torch_sees_a_gpu(ours, theirs, installed, monkeypatch):
    """Their torch may be built for CPUs although ours is not, and vice versa."""
    place = next(installed[0].glob("lib/python3*/site-packages")) / "zz-gpu.pth"
    place.write_text(f"import torch; torch.cuda.is_available = lambda: {theirs}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: ours)
    device_of.cache_clear()
    try:
        assert open_profile().record["device"] == ("cuda" if theirs else "cpu")
    finally:
        place.unlink()
        device_of.cache_clear()


def test_a_value_that_is_not_finite_is_refused(drift):
    with pytest.raises(RunFailed, match="musiq of a frame is not finite"):
        measured(drift, torch.zeros(6, 64, 64, 3, dtype=torch.uint8))
    frames = torch.full((6, 64, 64, 3), 90, dtype=torch.uint8)
    for colour in ((0, 0, 0), (0, 1, 1)):  # NaN and infinity
        frames[3] = torch.tensor(colour)  # in one frame only
        with pytest.raises(RunFailed, match="musiq of a frame is not finite"):
            measured(drift, frames)


def test_no_secret_goes_to_the_networks(installed, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not theirs")
    profile = open_profile()
    measured(profile, colored(*torch.arange(18).view(3, 6)))
    process = profile.observer._networks._process
    assert b"AWS_SECRET_ACCESS_KEY" not in Path(f"/proc/{process.pid}/environ").read_bytes()


@pytest.mark.parametrize(
    ("order", "message"),
    [("connect", "nothing is downloaded while it scores"), ("lack", "belongs to another model.*encoder.layer.0")],
)
def test_networks_that_connect_or_lack_weights_fail(order, message, installed):
    behave = installed[1] / "behave"
    behave.write_text(order)
    try:
        with pytest.raises(RunFailed, match=rf"^drift: its process failed \(.*{message}"):
            measured(open_profile(), colored(*torch.arange(18).view(3, 6)))
    finally:
        behave.unlink()


def test_killed_networks_are_reported_with_their_signal(installed):
    profile = open_profile()
    measured(profile, video := colored(*torch.arange(18).view(3, 6)))
    profile.observer._networks._process.kill()
    with pytest.raises(RunFailed, match=r"^drift: its process was killed by SIGKILL \(out of memory\?\)$"):
        measured(profile, video)


def test_missing_or_wrong_files_are_refused_before_anything_starts(installed, monkeypatch, tmp_path):
    environment, weights = installed
    musiq = weights / FILES[0]
    content = musiq.read_bytes()
    musiq.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=r"^drift: .*358bb6af.pth: SHA-256 [0-9a-f]{64}: should be 358bb6af"):
        open_profile()
    musiq.unlink()
    with pytest.raises(UserError, match=r"^drift: .*358bb6af.pth: is missing, SHA-256 358bb6af\.\.\.; `hiar vbench"):
        open_profile()
    musiq.write_bytes(content)
    package = next(environment.glob("lib/python3*/site-packages/torchmetrics"))
    package.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"^drift: package torchmetrics is not in .*, and should be; .*make vbench`$"):
        open_profile()
    (tmp_path / "aside").rename(package)
    monkeypatch.setenv("HIAR_VBENCH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="make vbench"):
        open_profile()


def test_doctor_knows_drift_beside_the_dimensions():
    assert known_names(["drift", "scene", "drift"]) == ["drift", "scene"]
    with pytest.raises(
        UserError, match=r"'drfit': is neither one of VBench's dimensions nor drift; did you mean 'drift'?"
    ):
        known_names(["drfit"])

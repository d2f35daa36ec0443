"""VBench-Long's fast branch: the first frames of a long video's clips, and how both branches are combined."""

import json
import shutil
import sys
from math import cos
from types import ModuleType

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model
from vbench_toys import DECORD, build_networks, lay_weights, requests_of

from hiar.errors import UserError
from hiar.io.video import write_mp4
from hiar.vbench.across import BRANCHES, both_branches, read_table
from hiar.vbench.first_frames import likeness, open_branch, open_dinov2
from hiar.vbench.runner import score_folder
from hiar.vbench.weights import approve

SUBJECT, BACKGROUND = BRANCHES
TABLE = {0.0: 0.0, 0.5: 0.8, 1.0: 1.0}


def blue(path, *levels, frames=8):
    """A video at 4 frames per second with ``frames`` frames per level (0 to 1), only the first of them in full."""
    video = torch.zeros(len(levels) * frames, 64, 96, 3)
    video[..., 2] = 0.2 * torch.tensor(levels).repeat_interleave(frames)[:, None, None]
    video[::frames] *= 5
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, (video * 255).round().byte(), 4)
    return path


def test_a_value_is_the_mean_of_both_branches():
    assert both_branches(0.9, 0.75, TABLE) == pytest.approx((0.9 + 0.9) / 2)
    assert both_branches(0.6, 0.5, TABLE) == pytest.approx((0.6 + 0.8) / 2)
    assert both_branches(0.6, 0.25, TABLE) == pytest.approx((0.6 + 0.4) / 2)
    assert both_branches(0.6, 1 + 1e-7, TABLE) == pytest.approx((0.6 + 1.0) / 2)
    assert both_branches(0.6, None, TABLE) == both_branches(0.6, 0.0, TABLE) == 0.6


def test_likeness_is_to_the_previous_and_to_the_first_picture():
    angles = (0.2, 0.3, 0.7, 0.2 + 3)
    found = likeness(torch.tensor([[cos(one), torch.tensor(one).sin()]]) for one in angles)
    pairs = [(cos(0.1), cos(0.1)), (cos(0.4), cos(0.5)), (0, 0)]  # opposite features count as 0, like orthogonal ones
    assert found == pytest.approx(sum(map(sum, pairs)) / 6)


@pytest.mark.parametrize(
    ("size", "resized_to", "left", "top"), [((64, 96), (256, 384), 80, 16), ((96, 64), (384, 256), 16, 80)]
)
def test_dinov2_sees_the_middle_of_the_picture_at_256_pixels(size, resized_to, left, top, tmp_path):
    """The real architecture, at a tiny size."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dinov2-base")
    picture = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    resized = interpolate(picture / 255, resized_to, mode="bicubic", antialias=True)
    mean, spread = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model((resized[..., top : top + 224, left : left + 224] - mean) / spread).pooler_output
        found = open_dinov2("cpu", str(tmp_path), "")(picture)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_lack_some_of_dinov2s_are_refused(tmp_path):
    """They would be drawn at random, and scored with."""
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14)
    model = Dinov2Model(config)
    kept = {name: weight for name, weight in model.state_dict().items() if name != "layernorm.bias"}
    model.save_pretrained(tmp_path / "dinov2-base", state_dict=kept)
    with pytest.raises(SystemExit, match=r"dinov2-base/model\.safetensors belongs to another model: .*layernorm\.bias"):
        open_dinov2("cpu", str(tmp_path), "")


def test_a_call_returns_the_records_of_its_own_videos(tmp_path, monkeypatch):
    """The worker makes one call for every 32 videos."""
    decord = ModuleType("decord")
    exec(DECORD, vars(decord))
    monkeypatch.setitem(sys.modules, "decord", decord)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2-base")
    steps = []
    score = open_branch(SUBJECT, "cpu", str(tmp_path), "", lambda: steps.append(1))
    for name in ("0.mp4", "1.mp4"):
        path = str(blue(tmp_path / name, 0.5, frames=2))
        (record,) = score([{"video_list": [path]}])
        assert record["video_path"] == path
    assert len(steps) == 2


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return build_networks(tmp_path_factory.mktemp("networks") / "venv")


@pytest.fixture
def weights(tmp_path):
    folder = lay_weights(tmp_path / "weights", SUBJECT, BACKGROUND, *(f"{one}_across_clips" for one in BRANCHES))
    for branch in BRANCHES.values():
        (folder / branch.table).write_text("".join(f"{value}: {becomes}\n" for value, becomes in TABLE.items()))
        approve(folder, branch.table)
    (folder / "dreamsim" / "ensemble_lora" / "adapter_config.json").write_text("{}")
    approve(folder, "dreamsim/ensemble_lora/adapter_config.json")
    return folder


def test_a_long_video_that_changes_between_its_clips_scores_lower(environment, weights, tmp_path):
    """Values within clips are the toy's, a file's size."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    blue(videos / "0.mp4", 0.1, 0.9, 0.5)
    blue(videos / "1.mp4", 0.5, 0.5)
    blue(videos / "2.mp4", 0.3, frames=5)
    shutil.copy(videos / "0.mp4", videos / "3.mp4")  # another file with the same film
    (videos / "captions.txt").write_text("a bird\na bee\na bear\na bird\n")

    def score(*dimensions, **options):
        where = {"environment": environment, "weights": weights}
        return score_folder(videos, dimensions, out, protocol="vbench-long", **where | options)

    scores = score(SUBJECT, BACKGROUND)
    calls = requests_of(weights)
    assert not scores.failed
    alike = {"0.mp4": (2 * cos(0.8) + cos(0.4) + cos(0.4)) / 4, "1.mp4": 1.0, "2.mp4": None}
    alike["3.mp4"] = alike["0.mp4"]
    for dimension in BRANCHES:
        sizes = [one["value"] for one in calls if one["dimension"] == dimension]
        within = {"0.mp4": sum(sizes[:3]) / 3, "1.mp4": sum(sizes[3:5]) / 2, "2.mp4": sizes[5]}
        within["3.mp4"] = within["0.mp4"]
        result = json.loads((out / f"{dimension}.json").read_text())
        expected = {name: both_branches(own, alike[name], TABLE) for name, own in within.items()}
        assert result["by_video"] == pytest.approx(expected, abs=5e-3)
        assert result["value"] == scores.values[dimension] == pytest.approx(sum(result["by_video"].values()) / 4)
        assert result["consistency"] == "within and across clips"
        assert {*BRANCHES[dimension].files} < {*result["weights"]}
    before = (out / f"{SUBJECT}.json").read_bytes()
    assert score(SUBJECT).values[SUBJECT] == scores.values[SUBJECT]
    assert requests_of(weights) == []
    assert (out / f"{SUBJECT}.json").read_bytes() == before
    score(SUBJECT, within_clips=True)
    alone = json.loads((out / f"{SUBJECT}.json").read_text())
    assert alone["consistency"] == "within clips"
    assert alone["by_video"]["0.mp4"] != pytest.approx(json.loads(before)["by_video"]["0.mp4"], abs=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "is not VBench-Long's table"),
        ("a: b\n", "is not VBench-Long's table"),
        ("0.5: 0.5\n", "does not map 0 and 1"),
    ],
)
def test_an_invalid_mapping_table_is_refused(content, message, tmp_path):
    (tmp_path / "table.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/table.yaml: {message}.*`hiar vbench fetch`"):
        read_table(tmp_path / "table.yaml")

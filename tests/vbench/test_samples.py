"""VBench's figures of an experiment's samples, as its scores have them."""

from pathlib import Path

import pytest
import torch
from vbench_toys import asked, behave, film

from hiar.errors import RunFailed
from hiar.parameters import load_params
from hiar.stages.vbench import _devices, figures_of, score_samples
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.totals import totals

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"
FLICKERING, IMAGING = "temporal_flickering", "imaging_quality"


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "samples"
    for number in range(3):
        film(folder / f"{number:04d}.mp4", 3 + 2 * number, number)
    (folder / "captions.txt").write_text("a bird\na bee\na bear\n")
    return folder


@pytest.fixture
def score(samples, toy, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HIAR_VBENCH", str(toy))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    paths = sorted(samples.glob("*.mp4"))
    runtime = load_params(PARAMS_FILE).runtime.model_copy(update={"device": "cpu"})

    def run(*names, processes=None):
        own = runtime.model_copy(update={"processes": processes})
        return score_samples(samples, paths, names, tmp_path / "out", own)

    return run


def test_a_mean_is_vbenchs_own_and_that_of_its_videos_values(score, samples, weights):
    found = score(FLICKERING, IMAGING)
    sizes = [path.stat().st_size / 1e5 for path in sorted(samples.glob("*.mp4"))]
    names = [f"vbench_{name}" for name in (FLICKERING, IMAGING)]
    assert [list(one) for one in found.values] == 3 * [names]
    for name, unit in zip(names, (1, 100), strict=True):  # in the unit of the value
        assert [one[name] for one in found.values] == pytest.approx([size / unit for size in sizes])
        assert found.metrics[name]["mean"] == pytest.approx(sum(sizes) / 3 / unit, rel=1e-12)  # not cut to six digits
        assert found.metrics[name]["n"] == 3
        spread = (sum((size - sum(sizes) / 3) ** 2 for size in sizes) / 2) ** 0.5
        assert found.metrics[name]["se"] == pytest.approx(spread / 3**0.5 / unit, rel=1e-4)
    assert found.facts[IMAGING]["weights"].keys() == {"pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"}
    assert {one["protocol"] for one in found.facts.values()} == {"vbench"}
    assert len(asked(weights)) == 6
    assert score(FLICKERING, IMAGING) == found
    assert asked(weights) == []


def test_as_many_dimensions_at_once_as_the_experiment_has_processes(score, weights):
    behave(weights, **{FLICKERING: "meet", IMAGING: "meet"})
    assert list(score(FLICKERING, IMAGING, processes=2).facts) == [FLICKERING, IMAGING]


def test_one_dimension_that_breaks_down_fails_the_scores(score, weights):
    behave(weights, **{IMAGING: "raise"})
    with pytest.raises(RunFailed, match=r"samples: imaging_quality: no value; .*no such luck"):
        score(FLICKERING, IMAGING)


def test_a_dimension_is_of_the_videos_of_its_prompts_alone(score, samples):
    """Where all prompts are of VBench's suite: the stop sign is there for its flickering."""
    (samples / "captions.txt").write_text("a bench\nIn a still frame, a stop sign\na bench\n")
    found = score(FLICKERING, IMAGING)
    both = [f"vbench_{name}" for name in (FLICKERING, IMAGING)]
    assert [list(one) for one in found.values] == [both, both[:1], both]
    assert [found.metrics[name]["n"] for name in both] == [3, 2]
    own = [one[both[1]] for one in found.values if both[1] in one]
    assert found.metrics[both[1]]["mean"] == pytest.approx(sum(own) / 2)


def result(**by_video):
    """Of a dimension; VBench's own value is not quite the mean of its videos'."""
    known = [value for value in by_video.values() if value is not None]
    facts = dict.fromkeys(("protocol", "device", "weights", "versions", "more"), "said")
    return {"value": 0.01 + sum(known) / len(known), "by_video": by_video} | facts


def test_totals_are_of_the_values_and_of_each_video_that_has_all_they_take():
    quality = [name for name, one in DIMENSIONS.items() if one.group == "quality"]
    results = {name: result(a=0.5, b=0.7, c=0.8, d=None) for name in quality}
    results["imaging_quality"] = result(a=50.0, b=70.0, c=None)
    results["scene"] = result(a=0.25)
    found = figures_of(results, ["a", "b", "c", "d"])
    assert found.metrics.keys() == {f"vbench_{name}" for name in (*results, "quality")}
    for video, own in zip("ab", found.values, strict=False):
        named = {name: own[f"vbench_{name}"] for name in quality}
        assert set(named.values()) == {results[FLICKERING]["by_video"][video]}  # all in the unit of the value
        assert own["vbench_quality"] == pytest.approx(totals(named).quality)
    assert found.values[0].keys() - found.values[1].keys() == {"vbench_scene"}
    assert "vbench_quality" not in found.values[2]
    assert found.values[3] == {}
    whole = found.metrics["vbench_quality"]
    assert whole["mean"] == totals({name: one["value"] for name, one in results.items()}).quality
    one, other = (own["vbench_quality"] for own in found.values[:2])
    assert (whole["se"], whole["n"]) == (pytest.approx((other - one) / 2, rel=1e-5), 4)
    assert found.facts["scene"] == dict.fromkeys(("protocol", "device", "weights", "versions"), "said")
    strict = {name: result(a=0.5) for name in DIMENSIONS} | {"imaging_quality": result(b=50.0)}
    figures = figures_of(strict, ["a", "b"]).metrics  # of no video all
    assert figures["vbench_total"]["mean"] == totals({name: one["value"] for name, one in strict.items()}).total
    assert figures["vbench_total"]["se"] is figures["vbench_quality"]["se"] is None


def test_devices_are_those_that_the_stage_has(monkeypatch):
    runtime = load_params(PARAMS_FILE).runtime

    def devices(device, processes):
        return _devices(runtime.model_copy(update={"device": device, "processes": processes}))

    for count, one, many in ((0, ["cpu"], ["cpu"] * 3), (2, ["cuda:0"], ["cuda:0", "cuda:1"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert (devices("auto", None), devices("auto", 3)) == (one, many)
        assert devices("cpu", 3) == ["cpu"] * 3
    assert devices("cuda", None) == ["cuda:0"]

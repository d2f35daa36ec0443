"""VBench's values for an experiment's samples, as they appear in its scores."""

import pytest
from sampled import small_params
from vbench_toys import behave, film, requests_of

from hiar.errors import RunFailed
from hiar.io.artifacts import write_manifest
from hiar.stages import vbench
from hiar.stages.comparison import contenders
from hiar.stages.vbench import figures_of, vbench_figures
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.totals import totals

FLICKERING, IMAGING = "temporal_flickering", "imaging_quality"


@pytest.fixture
def params():
    """Params of an experiment with only the teacher."""
    score = small_params().score.model_dump(mode="json") | {"vbench": [FLICKERING, IMAGING]}
    return small_params(seeds=[0], compare={"init": [], "distill": [], "walked": []}, score=score)


@pytest.fixture
def samples(tmp_path, params):
    folder = tmp_path / "artifacts" / "seed-0" / "samples" / "teacher"
    for number in range(3):
        film(folder / f"{number:04d}.mp4", 3 + 2 * number, number)
    caption(folder, "a bird", "a bee", "a bear")
    return folder


def caption(folder, *captions):
    (folder / "captions.txt").write_text("".join(f"{one}\n" for one in captions))
    write_manifest(folder, "samples")


@pytest.fixture
def score(samples, params, toy, weights, tmp_path, monkeypatch):
    """Runs stage vbench for dimensions and returns its part of the scores."""
    monkeypatch.setenv("HIAR_VBENCH", str(toy))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    monkeypatch.setenv("HIAR_TRACKING", "off")
    (teacher,) = contenders(params)

    def run(*names):
        for name in names:
            vbench.run(params, tmp_path, 0, name)
        return vbench_figures(teacher, sorted(samples.glob("*.mp4")), names, tmp_path)

    return run


def test_a_mean_is_vbenchs_own_over_the_values_of_its_videos(score, samples, weights):
    found = score(FLICKERING, IMAGING)
    sizes = [path.stat().st_size / 1e5 for path in sorted(samples.glob("*.mp4"))]
    names = [f"vbench_{name}" for name in (FLICKERING, IMAGING)]
    assert [list(one) for one in found.values] == 3 * [names]
    for name, unit in zip(names, (1, 100), strict=True):  # in the unit of the value
        assert [one[name] for one in found.values] == pytest.approx([size / unit for size in sizes])
        assert found.metrics[name]["mean"] == pytest.approx(sum(sizes) / 3 / unit, rel=1e-12)  # no six-digit rounding
        assert found.metrics[name]["n"] == 3
        spread = (sum((size - sum(sizes) / 3) ** 2 for size in sizes) / 2) ** 0.5
        assert found.metrics[name]["se"] == pytest.approx(spread / 3**0.5 / unit, rel=1e-4)
    assert found.facts[IMAGING]["weights"].keys() == {"pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"}
    assert {one["protocol"] for one in found.facts.values()} == {"vbench"}
    assert len(requests_of(weights)) == 6
    assert score(FLICKERING, IMAGING) == found
    assert requests_of(weights) == []


def test_videos_of_any_length_are_scored_by_the_protocol_in_the_params(score, samples, params, tmp_path):
    asks = params.score.model_copy(update={"vbench_protocol": "vbench-long"})
    vbench.run(params.model_copy(update={"score": asks}), tmp_path, 0, FLICKERING)
    (teacher,) = contenders(params)
    found = vbench_figures(teacher, sorted(samples.glob("*.mp4")), [FLICKERING], tmp_path)
    assert found.facts[FLICKERING]["protocol"] == "vbench-long"


def test_a_failing_dimension_fails_the_scores(score, weights):
    behave(weights, **{IMAGING: "raise"})
    with pytest.raises(RunFailed, match=r"samples/teacher: no value; imaging_quality: .*no such luck"):
        score(FLICKERING, IMAGING)


def test_a_dimension_covers_only_videos_of_its_prompts(score, samples):
    """If all prompts are from VBench's suite: the stop sign is only for temporal_flickering."""
    caption(samples, "a bench", "In a still frame, a stop sign", "a bench")
    found = score(FLICKERING, IMAGING)
    both = [f"vbench_{name}" for name in (FLICKERING, IMAGING)]
    assert [list(one) for one in found.values] == [both, both[:1], both]
    assert [found.metrics[name]["n"] for name in both] == [3, 2]
    own = [one[both[1]] for one in found.values if both[1] in one]
    assert found.metrics[both[1]]["mean"] == pytest.approx(sum(own) / 2)


def result(**by_video):
    """A dimension's result; VBench's own value is not quite the mean of its videos'."""
    known = [value for value in by_video.values() if value is not None]
    facts = dict.fromkeys(("protocol", "device", "weights", "versions", "more"), "said")
    return {"value": 0.01 + sum(known) / len(known), "by_video": by_video} | facts


def test_totals_are_of_the_values_and_of_each_video_that_has_all_dimensions():
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
    figures = figures_of(strict, ["a", "b"]).metrics  # no video has them all
    assert figures["vbench_total"]["mean"] == totals({name: one["value"] for name, one in strict.items()}).total
    assert figures["vbench_total"]["se"] is figures["vbench_quality"]["se"] is None

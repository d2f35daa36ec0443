"""VBench's figures of an experiment's samples, as its scores have them."""

from pathlib import Path

import pytest
from vbench_toys import asked, behave, film

from hiar.errors import RunFailed
from hiar.parameters import load_params
from hiar.stages.vbench import score_samples

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

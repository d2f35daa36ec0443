"""VBench's environment: found if it is complete, with its packages' versions."""

import sys
from functools import partial

import pytest
from sampled import ROOT
from vbench_toys import lay_weights

from hiar.errors import UserError
from hiar.parameters import parse_params, read_yaml
from hiar.vbench import environment
from hiar.vbench.doctor import check_scoring
from hiar.vbench.environment import find_environment


def create_files(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


PYTHON, PACKAGES = "bin/python", "lib/python3.11/site-packages"
SUITE = f"{PACKAGES}/vbench/VBench_full_info.json"


@pytest.mark.parametrize(
    "files", [(), (PYTHON,), (SUITE,), (PYTHON, f"{PACKAGES}/vbench/__init__.py"), (PYTHON, f"{PACKAGES}/torch/x")]
)
def test_an_incomplete_environment_is_refused(tmp_path, files):
    with pytest.raises(UserError, match="make vbench"):
        find_environment(create_files(tmp_path, *files))


def test_a_clone_uses_the_environment_beside_its_python(tmp_path, monkeypatch):
    """A worker's clone, which runs a commit's code from its own folder."""
    monkeypatch.delenv("HIAR_VBENCH", raising=False)
    clone, project = tmp_path / "clone", tmp_path / "project"
    monkeypatch.setattr(environment, "__file__", str(clone / "hiar" / "vbench" / "environment.py"))
    monkeypatch.setattr(sys, "prefix", str(project / ".venv"))
    assert environment.default_folder() == clone / ".venv-vbench"  # which `make vbench` would build there
    (project / ".venv-vbench").mkdir(parents=True)
    assert environment.default_folder() == project / ".venv-vbench"
    (clone / ".venv-vbench").mkdir(parents=True)
    assert environment.default_folder() == clone / ".venv-vbench"
    monkeypatch.setenv("HIAR_VBENCH", str(tmp_path))
    assert environment.default_folder() == tmp_path


def test_versions_are_those_that_figures_depend_on(tmp_path):
    found = find_environment(create_files(tmp_path, PYTHON, SUITE))
    for name, version in (("VBench", "0.1.5"), ("openai-clip", "1.0.1"), ("wheel", "1")):
        place = tmp_path / PACKAGES / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert found.versions() == {"vbench": "0.1.5", "openai-clip": "1.0.1"}
    assert found.versions(["wheel", "torch"]) == {"wheel": "1"}
    assert (found.has("vbench"), found.has("torch")) == (True, False)


def score_settings(**changes):
    score = parse_params(read_yaml(ROOT / "params.yaml"), ROOT / "params.yaml").score
    return score.model_copy(update=changes)


def test_an_experiments_scoring_is_checked_before_it_begins(tmp_path, monkeypatch, toy):
    monkeypatch.setenv("HIAR_VBENCH", str(tmp_path / "none"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    check_scoring(score_settings(), lambda: 4)
    check_scoring(score_settings(profiles=["drift-lite"]), lambda: 4)
    for changes in ({"vbench": ["temporal_flickering"]}, {"profiles": ["drift"]}):
        with pytest.raises(UserError, match="make vbench"):
            check_scoring(score_settings(**changes), lambda: 4)
    monkeypatch.setenv("HIAR_VBENCH", str(toy))
    check_scoring(score_settings(vbench=["temporal_flickering"]), lambda: 4)
    with pytest.raises(UserError, match=r"motion_smoothness: .*amt-s\.pth: is missing"):
        check_scoring(score_settings(vbench=["temporal_flickering", "motion_smoothness"]), lambda: 4)
    with pytest.raises(UserError, match=r"^drift: package pyiqa is not in "):
        check_scoring(score_settings(profiles=["drift"]), lambda: 4)
    lay_weights(tmp_path, "subject_consistency")
    for seconds, protocol in ((4.9, None), (81 / 16, "vbench")):
        check_scoring(score_settings(vbench=["subject_consistency"], vbench_protocol=protocol), partial(float, seconds))
    for seconds, protocol in ((5.0, None), (1, "vbench-long")):
        with pytest.raises(UserError, match=r"^subject_consistency_across_clips: package transformers is not in "):
            check_scoring(
                score_settings(vbench=["subject_consistency"], vbench_protocol=protocol), partial(float, seconds)
            )

"""dvc.yaml agrees with the code of the stages: their imports, parameters and command lines."""

import re
from pathlib import Path

import grimp
import pytest
import yaml

from hiar.cli.experiments import STAGES
from hiar.workspace import experiment_params

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
KINDS = sorted(path.name for path in (ROOT / "hiar" / "worlds").iterdir() if (path / "__init__.py").exists())
# Code that does not affect results: checking parameters, writing files, displaying and recording runs. The encoding of
# videos is part of a result.
PLUMBING = re.compile(
    r"hiar\.(config(\..*)?|errors|late|parameters|plain_yaml|stages\.(definition|restart)|(io|tracking)(\.(?!video|reading).*)?)"
)


@pytest.fixture(scope="module")
def imports():
    graph = grimp.build_graph("hiar", cache_dir=None)
    # Validation only observes (tests/stages/test_validation.py): a changed judge must not cause a new training.
    graph.remove_module("hiar.stages.validation")
    return graph


def module_of(stage):
    return "sample" if stage.startswith("sample") else stage


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_the_code_that_decides_its_result(stage, imports):
    useless = {dep for dep in PIPELINE[stage]["deps"] if dep.startswith("hiar/")}
    for kind in KINDS:
        listed = {dep: Path(dep.replace("${world.kind}", kind)) for dep in PIPELINE[stage]["deps"]}
        files = files_of(stage, kind, imports)
        assert not {str(file) for file in files if not any(file.is_relative_to(dep) for dep in listed.values())}, kind
        useless -= {dep for dep, path in listed.items() if any(file.is_relative_to(path) for file in files)}
        assert not [dep for dep in listed.values() if dep.parts[0] == "hiar" and not (ROOT / dep).exists()]
    assert not useless


def files_of(stage, kind, imports):
    """The files that a stage imports in this kind of world, without plumbing."""
    entry = f"hiar.stages.{module_of(stage)}"
    every = {entry, *imports.find_upstream_modules(entry)}
    for package in {"hiar.worlds", "hiar.judges"}:  # each experiment opens one of each
        if f"{package}.interface" in every:
            opened = f"{package}.{kind}"
            inside = imports.find_descendants(opened)
            every |= {opened, *inside, *imports.find_upstream_modules(opened, as_package=True)}
    used = {module for module in every if not PLUMBING.fullmatch(module)}
    return {path for path in map(path_of, used) if path.name != "__init__.py"}


def path_of(module):
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("stage", PIPELINE)
def test_the_parameters_of_a_stage_exist(stage):
    for name in PIPELINE[stage]["params"]:
        value = PARAMS
        for key in name.replace("${item.variant.walk}", "hiar").replace("${item.variant}", "hiar").split("."):
            assert key in value, name
            value = value[key]


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stages_command_gives_exactly_the_options_it_takes(stage):
    _, _, name, *options = PIPELINE[stage]["cmd"].split()
    assert name == module_of(stage)
    given = set(re.findall(r"--(\w+)", " ".join(options)))
    by_hand = {"restart-from"} | ({"variant"} if stage == "sample-teacher" else set())
    by_hand |= set() if stage == "sample-walked" else {"walk"}
    assert given == STAGES[name] - by_hand


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_is_valid(path):
    experiment_params(ROOT, path.stem)

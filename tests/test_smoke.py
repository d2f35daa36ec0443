"""What a user gets from `hiar run smoke`, and can do with it next."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import chain

import pytest
import yaml
from commands import environment, hiar

from hiar.io.artifacts import content_hash
from hiar.parameters import load_params
from hiar.stages.comparison import read_summary

METRICS = {
    "good",
    "residual",
    "smoothed_speed",
    "saturation_drift",
    "sharpness_drift",
    "background_shift",
    "border_jump",
}
PROMPT = "a red disc moves quickly right on a black background"


def run_ids(client):
    (experiment,) = [one for one in client.search_experiments() if one.name == "hiar"]
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]


@pytest.fixture(scope="module")
def client(smoke):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{smoke.parents[1] / 'mlflow.db'}")


def test_the_summary_has_one_row_per_model(smoke):
    params = yaml.safe_load((smoke / "params.yaml").read_text())
    rows = read_summary(load_params(smoke / "params.yaml"), smoke)
    expected = [("teacher", "teacher", None, None)]
    for stage in ("init", "distill"):
        for name in params["compare"][stage]:
            variant = params["variants"][name]
            expected.append((stage, name, variant["order"], variant["context"]))
    expected.append(("walked", "self-forcing/hiar", "step_first", "output"))
    assert [(row["stage"], row["variant"], row["order"], row["context"]) for row in rows] == expected
    for row in rows:
        assert row.keys() == {"variant", "stage", "order", "context", "seed", "metrics"}
        assert row["seed"] == 0
        assert row["metrics"].keys() >= METRICS
        for figure in row["metrics"].values():
            assert figure.keys() == {"mean", "se", "n"}
            assert figure["n"] == params["sample"]["videos"]


def test_the_report_is_one_file(smoke):
    text = (smoke / "reports" / "index.html").read_text()
    assert text.count("data:video/mp4;base64,") == 2 * 6  # prompts; true world, teacher, init, two students, one walked
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert {path.name for path in (smoke / "reports").iterdir()} == {"index.html", "contact_sheet.png", "run.json"}
    for stage in ("seed-0/codec", "seed-0/distill/hiar", "seed-0/samples/teacher", "score"):
        assert f'<th scope="row">{stage}</th>' in text


def test_nothing_unfinished_is_left(smoke):
    assert list(smoke.rglob("*.partial")) == []
    assert [path for path in smoke.rglob(".*") if path.is_relative_to(smoke / "artifacts")] == []


def test_outputs_are_links_into_the_cache(smoke):
    """So their bytes are on the disk once; an output that the cache already had from another stage stays a copy."""
    weights = [smoke / "artifacts" / "seed-0" / name / "transformer" for name in ("teacher", "init", "distill/hiar")]
    files = [*chain.from_iterable(folder.glob("*.safetensors") for folder in weights), smoke / "metrics/summary.json"]
    assert len(files) == 4
    assert [path.stat().st_nlink for path in files] == [2] * 4


def test_a_second_run_runs_no_stage(smoke, client):
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=smoke, env=environment(), capture_output=True, text=True
    )
    assert status.stdout.strip() == "Data and pipelines are up to date.", status.stderr
    before, runs = stamps(smoke), run_ids(client)
    output = hiar("run", "smoke", folder=smoke.parents[1]).stdout
    assert output.startswith("everything is up to date\n")
    table = [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")]
    others = ["HiAR · init", "HiAR", "Self-Forcing · walked as HiAR"]
    assert table[2:8] == [others[0], "Self-Forcing", *others[1:], "Teacher", "True world"]
    assert table[10:] == others
    assert "Difference to Self-Forcing, 95 % interval over videos" in output
    assert "runs/smoke/reports/index.html" in output
    assert stamps(smoke) == before
    assert run_ids(client) == runs


def stamps(workspace):
    """Modification times of the files that a stage would change if it ran."""
    names = ("dvc.lock", "artifacts", "metrics", "curves", "reports", "logs")
    files = [path for name in names for path in [workspace / name, *(workspace / name).rglob("*")] if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def test_mlflow_has_a_run_per_stage_and_contender_under_one_parent(smoke, client):
    runs = [client.get_run(run_id) for run_id in run_ids(client)]
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert children.keys() == RUNS.keys()
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for run in runs:
        assert (run.data.params["teacher.training.steps"], run.data.params["seeds"]) == ("20", "[0]")
        assert run.data.tags["experiment"] == "smoke"
        assert re.match("[0-9a-f]{40}", run.data.tags["commit"])
    rows = read_summary(load_params(smoke / "params.yaml"), smoke)
    scores = {(row["stage"], row["variant"]): row["metrics"] for row in rows}
    for name, run in children.items():
        assert run.data.metrics.keys() >= RUNS[name], name
        assert run.data.tags["content"] == content_hash(smoke / run.data.tags["path"])
        if run.data.tags["kind"] == "contender":
            score = scores[run.data.tags["stage"], run.data.tags["method"]]
            assert {key: run.data.metrics[key] for key in METRICS} == {key: score[key]["mean"] for key in METRICS}
            assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"0000.mp4", "0001.mp4"}
            segments = client.get_metric_history(run.info.run_id, "segments/good")
            assert [point.value for point in segments] == [
                score[f"good_segment_{part}"]["mean"] for part in range(1, 6)
            ]
    teacher = children["teacher seed 0"]
    assert children["init seed 0"].data.tags["content of teacher"] == teacher.data.tags["content"]
    assert children["hiar seed 0 init"].data.tags["trained by"] == children["init seed 0"].info.run_id
    for name, curve in {"teacher seed 0": "teacher", "hiar seed 0": "distill/hiar"}.items():
        lines = list(csv.DictReader((smoke / "curves" / "seed-0" / f"{curve}.csv").open()))
        for column in lines[0].keys() - {"step"}:
            found = client.get_metric_history(children[name].info.run_id, column)
            expected = [(int(line["step"]), line[column]) for line in lines if line[column]]
            assert sorted((point.step, f"{point.value:.6g}") for point in found) == expected
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept == {"index.html", "contact_sheet.png", "summary.json"}


RUNS = {
    "codec seed 0": {"loss", "psnr"},
    "teacher seed 0": {"loss", "grad_norm"},
    "pairs seed 0": {"latent_std"},
    "init seed 0": {"loss", "grad_norm"},
    "hiar seed 0 init": set(),
    "self-forcing seed 0": {"critic", "dmd"},
    "hiar seed 0": {"critic", "dmd"},
    "self-forcing/hiar seed 0": set(),
}


def sample(smoke, out, checkpoint, frames, *options):
    return hiar(
        *("sample", "--checkpoint", smoke / "artifacts" / "seed-0" / checkpoint, "--frames", frames, "--out", out),
        *("--seed", 3, *options),
        folder=smoke,
    )


def test_step_first_and_diagonal_give_the_same_videos_which_can_be_scored(smoke, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na blue wide bar moves\n")
    for order in ("step_first", "diagonal"):
        options = ("--prompts", prompts, "--order", order, "--save-latents")
        sample(smoke, tmp_path / order, "distill/hiar", 30, *options)
    names = ["0000.mp4", "0001.mp4", "captions.txt", "latents.safetensors", "prompts.jsonl"]
    for order in ("step_first", "diagonal"):
        assert sorted(path.name for path in (tmp_path / order).iterdir()) == sorted([*names, "manifest.json"])
    digests = [
        {name: hashlib.sha256((tmp_path / order / name).read_bytes()).hexdigest() for name in names}
        for order in ("step_first", "diagonal")
    ]
    assert digests[0] == digests[1]
    manifest = json.loads((tmp_path / "diagonal" / "manifest.json").read_text())
    assert (manifest["order"], manifest["context"], manifest["variant"]) == ("diagonal", "output", "hiar")

    hiar("score", tmp_path / "diagonal", "--out", tmp_path / "score.json", folder=smoke)
    score = json.loads((tmp_path / "score.json").read_text())["oracle"]
    assert (score["videos"], score["frames"]) == (2, 30)
    assert score["metrics"].keys() >= METRICS


def test_the_teacher_makes_clips_of_its_own_length(smoke, tmp_path):
    sample(smoke, tmp_path / "out", "teacher", 15, "--prompt", PROMPT)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0000.mp4",
        "captions.txt",
        "manifest.json",
        "prompts.jsonl",
    ]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["order"] is None


@pytest.mark.long
def test_after_two_forced_runs_every_cache_object_matches_its_hash(smoke, tmp_path):
    """Outputs are links into the cache: a stage that wrote into a finished output would change the object."""
    project = tmp_path / "project"
    shutil.copytree(smoke.parents[1], project, symlinks=True)
    shutil.rmtree(project / "runs")
    shutil.rmtree(project / ".dvc" / "cache")
    hiar("run", "smoke", folder=project)
    for _ in range(2):
        hiar("run", "smoke", "--force", folder=project)
    objects = [path for path in (project / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.is_file()]
    assert len(objects) > 50
    for path in objects:
        assert path.parent.name + path.name.removesuffix(".dir") == hashlib.md5(path.read_bytes()).hexdigest()

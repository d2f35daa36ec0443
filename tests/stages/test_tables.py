"""`hiar tables` as a command, for experiments that were run and for missing ones."""

import json
import shutil
from dataclasses import asdict
from functools import partial

import pytest
import yaml
from commands import ROOT, hiar
from conftest import copy_project

from hiar.errors import UserError
from hiar.report.paper import as_markdown
from hiar.stages.comparison import contenders
from hiar.stages.tables import table_of
from hiar.workspace import experiment_params, experiment_tree, open_workspace, run_params

METRICS = ("good", "shape_right", "smoothed_speed", "saturation_drift")
TINY = {"seeds": [0, 1, 2], "sample": {"videos": 4, "frames": 30}, "report": {"videos": 2}}


@pytest.fixture
def project(tmp_path):
    """A project in which table2's experiment has been run: HiAR has better good frames, all else is equal."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    workspace = tmp_path / "runs" / "table2"
    (workspace / "metrics").mkdir(parents=True)
    (workspace / "params.yaml").write_text(yaml.safe_dump(experiment_tree(tmp_path, "table2")))
    rows = [
        {
            "stage": "distill",
            "variant": variant,
            "order": "step_first",
            "context": "output",
            "seed": seed,
            "video": video,
            "metrics": {
                "good": 0.5 + 0.01 * video + (0.1 + 0.001 * seed) * (variant == "hiar"),
                **dict.fromkeys(("shape_right", "border_jump", "saturation_drift"), 0.01 * video),
            },
        }
        for variant in ("self-forcing", "hiar", "hiar-input")
        for seed in range(3)
        for video in range(4)
    ]
    (workspace / "metrics" / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mistake(*arguments, folder):
    run = hiar(*arguments, folder=folder, code=2)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    return line.removeprefix("error: ")


def test_tables_of_an_experiment_are_written(project):
    lines = hiar("tables", "table2", folder=project).stdout.splitlines()
    folder = "runs/table2/reports"
    assert lines[:4] == [f"{folder}/{name}" for name in ("tables.html", "tables.md", "tables.csv", "claims.csv")]
    assert "table2: input-level context costs quality: holds" in lines
    assert "table2: output-level context drifts less than clean: undecided" in lines
    assert "| 0.6160 [0.6" in (project / folder / "tables.md").read_text()
    (project / folder / "run.json").write_text('{"commits": ["abc"], "stages": [{"sec')  # truncated by a kill
    hiar("tables", "table2", "--out", "all", folder=project)
    text = (project / "all" / "tables.md").read_text()
    assert "Training seeds: 0, 1, 2. Videos: 128 of 240 latent frames, 16 training lengths." in text
    assert (project / "all" / "tables.csv").read_text().count("\n") == 1 + 3 * 4
    assert "paper_rank" in (project / "all" / "tables.csv").read_text()
    assert "verdict" in (project / "all" / "claims.csv").read_text()
    assert {path.name for path in (project / "all").iterdir()} == {
        *("tables.html", "tables.md", "tables.csv", "claims.csv")
    }


def test_experiments_without_a_table_not_run_or_changed_are_refused(project):
    before = sorted(project.rglob("*"))
    assert mistake("tables", "table2", "front", folder=project) == (
        "experiment 'front': report.table = null: belongs to no table of the paper; name one that does"
    )
    assert mistake("tables", "table1", folder=project) == (
        "runs/table1/metrics/videos.jsonl: no such file; run `hiar run table1` first"
    )
    experiment = project / "experiments" / "table2.yaml"
    experiment.write_text(experiment.read_text().replace("videos: 128", "videos: 64"))
    assert mistake("tables", "table2", folder=project) == (
        "runs/table2/params.yaml: differs from experiment 'table2' as it is now; run `hiar run table2` again"
    )
    assert sorted(project.rglob("*")) == before


def test_a_change_in_a_file_named_in_the_parameters_makes_a_run_outdated(tmp_path):
    """Every Wan experiment names files; a run records their contents."""
    copy_project(tmp_path)
    name = "wan-tiny+table1"
    workspace = open_workspace(tmp_path, name)
    (workspace / "metrics").mkdir()
    rows = [
        asdict(one) | {"video": video, "metrics": {"drift": 0.1 * video}}
        for one in contenders(experiment_params(tmp_path, name))
        for video in range(3)
    ]
    (workspace / "metrics" / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"{name}: HiAR drifts less than Self-Forcing: undecided" in hiar("tables", name, folder=tmp_path).stdout
    with (tmp_path / "experiments" / "prompts.txt").open("a") as prompts:
        prompts.write("A prompt more.\n")
    with pytest.raises(UserError, match=r"differs from experiment 'wan-tiny\+table1' as it is now"):
        table_of(name, partial(run_params, tmp_path), tmp_path)


def test_any_changed_parameter_makes_a_run_outdated(project):
    params = experiment_params(project, "table2")
    assert table_of("table2", lambda _: params, project).experiment == "table2"
    other = params.model_copy(update={"score": params.score.model_copy(update={"hop": params.score.hop / 2})})
    with pytest.raises(UserError, match="differs from experiment 'table2' as it is now"):
        table_of("table2", lambda _: other, project)


def test_a_table_has_the_facts_of_its_run_that_are_known(project):
    workspace, params_of = project / "runs" / "table2", partial(experiment_params, project)
    tables = project / "experiments" / "paper" / "tables.yaml"
    tables.write_text(tables.read_text().replace("Table 2:", "Table II:"))  # the project's own tables
    log = {"name": "score", "hardware": "a CPU", "seconds": 61.0, "peak_memory_mb": 900}
    run = {"commits": ["abc", "def + changes"], "stages": [log, log | {"seconds": 2.0}]}
    (workspace / "reports").mkdir()

    def facts(run):
        (workspace / "reports" / "run.json").write_text(json.dumps(run))
        found = table_of("table2", params_of, project)
        assert found.title.startswith("Table II:")
        return dict(found.facts)

    known = facts(run)
    assert (known.pop("Training seeds"), known.pop("Videos").split(",")[0]) == ("0, 1, 2", "128 of 240 latent frames")
    assert known == {
        "Commit": "abc, def + changes",
        "Hardware": "a CPU",
        "Stages, summed": "1 min 03 s",
        "Highest memory": "900 MB",
    }
    for field in run:  # as an earlier version may have written it
        assert facts({name: value for name, value in run.items() if name != field}).keys() == {
            "Training seeds",
            "Videos",
        }


def test_a_table_uses_the_metrics_of_the_experiments_world(project):
    name = "wan2.1-1.3b+table2"
    source, workspace = project / "runs" / "table2", project / "runs" / name
    (workspace / "metrics").mkdir(parents=True)
    (workspace / "params.yaml").write_text(yaml.safe_dump(experiment_tree(project, name)))
    text = (source / "metrics" / "videos.jsonl").read_text()
    ours = {"good": "vbench_quality", "border_jump": "vbench_motion_smoothness", "saturation_drift": "drift"}
    for metric, other in ours.items():
        text = text.replace(f'"{metric}"', f'"{other}"')
    (workspace / "metrics" / "videos.jsonl").write_text(text)
    found = table_of(name, partial(experiment_params, project), project)
    assert [column.metric for column in found.columns] == [*ours.values()]


def test_on_wan_semantic_is_of_all_videos_and_causal_forcing_is_left_open(project):
    """Semantic comes from the summary, since a single video has none."""
    name = "wan2.1-1.3b+table1+vbench"
    params, workspace = experiment_params(project, name), project / "runs" / name
    (workspace / "metrics").mkdir(parents=True)
    (workspace / "params.yaml").write_text(yaml.safe_dump(experiment_tree(project, name)))
    rows, summary = [], {}
    for one in contenders(params):
        value = 0.7 + 0.1 * (one.variant == "hiar")
        rows += [asdict(one) | {"video": video, "metrics": {"drift": 0.01 * video}} for video in range(3)]
        of_variant = summary.setdefault(one.stage, {}).setdefault(one.variant, {})
        of_variant[f"seed-{one.seed}"] = {"vbench_semantic": {"mean": value, "se": 0.0, "n": 3}}
    (workspace / "metrics" / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workspace / "metrics" / "summary.json").write_text(json.dumps(summary))
    table = table_of(name, partial(experiment_params, project), project)
    semantic = [column.metric for column in table.columns].index("vbench_semantic")
    found = {line.name: line.figures[semantic].ours for line in table.lines}
    means = {row: figure and figure.mean for row, figure in found.items()}
    assert means.pop("Causal Forcing") is None
    assert means == pytest.approx({"CausVid": 0.7, "Self-Forcing": 0.7, "HiAR": 0.8})
    assert "Causal Forcing, which needs an experiment of its own in this world." in as_markdown([table])


def test_a_row_may_come_from_an_experiment_run_beside(project):
    """Until it has been run, the row says how to run it; if its parameters have changed since, it is refused."""
    names = {"table1": ("causvid", "self-forcing", "hiar"), "table1+causal-forcing": ("self-forcing", "hiar")}

    def write_run(name, shift):
        workspace = project / "runs" / name
        (workspace / "metrics").mkdir(parents=True)
        (workspace / "reports").mkdir()
        (workspace / "params.yaml").write_text(yaml.safe_dump(experiment_tree(project, name)))
        (workspace / "reports" / "run.json").write_text(json.dumps({"commits": [f"of {name}"], "stages": []}))
        rows = [
            {"stage": "distill", "variant": variant, "order": "step_first", "context": "output", "seed": seed}
            | {"video": video, "metrics": dict.fromkeys(METRICS, shift + 0.01 * video)}
            for variant in names[name]
            for seed in range(3)
            for video in range(4)
        ]
        (workspace / "metrics" / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write_run("table1", 0.5)
    hiar("tables", "table1", folder=project)
    text = (project / "runs" / "table1" / "reports" / "tables.md").read_text()
    assert "Not trained here: Causal Forcing, which needs hiar run table1+causal-forcing." in text
    write_run("table1+causal-forcing", 0.7)
    table = table_of("table1", partial(experiment_params, project), project)
    figures = {line.name: line.figures[0].ours.mean for line in table.lines}
    assert figures == pytest.approx({"CausVid": 0.515, "Self-Forcing": 0.515, "Causal Forcing": 0.715, "HiAR": 0.515})
    assert ("Causal Forcing", "experiment table1+causal-forcing, commit of table1+causal-forcing") in table.facts
    assert ("Commit", "of table1") in table.facts
    experiment = project / "experiments" / "causal-forcing.yaml"
    experiment.write_text(experiment.read_text() + "sample: {videos: 64}\n")
    assert mistake("tables", "table1", folder=project) == (
        "runs/table1+causal-forcing/params.yaml: differs from experiment 'table1+causal-forcing' as it is now; "
        "run `hiar run table1+causal-forcing` again"
    )


def test_overrides_are_merged_in_their_order(project):
    (project / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    both = experiment_params(project, "table2+tiny")
    assert (both.sample.videos, both.report.table) == (4, "table2")
    assert experiment_params(project, "tiny+table2").sample.videos == 128
    wan = experiment_params(project, "wan2.1-1.3b+table3")
    assert (wan.world.kind, wan.compare.students[-1]) == ("wan", "walked/self-forcing/hiar")
    line = mistake("config", "check", "table2+tny", folder=project)
    assert line == "experiment 'tny': there is no experiments/tny.yaml; did you mean 'tiny'?"


@pytest.mark.long
def test_tables_of_a_whole_run(tmp_path):
    copy_project(tmp_path / "project")
    name = "smoke+table2+tiny"
    (tmp_path / "project" / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    hiar("run", name, folder=tmp_path / "project")
    output = hiar("tables", name, folder=tmp_path / "project").stdout
    assert output.count(": undecided\n") + output.count(": holds\n") + output.count(": fails\n") == 5
    text = (tmp_path / "project" / "runs" / name / "reports" / "tables.md").read_text()
    assert "Videos: 4 of 30 latent frames, 2 training lengths." in text
    assert 'href="tables.html"' in (tmp_path / "project" / "runs" / name / "reports" / "index.html").read_text()

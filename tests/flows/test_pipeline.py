import os
import re
import shutil
import subprocess
import sys
import threading
from hashlib import md5

import pytest
import yaml
from waiting import wait_until

from flows.pipeline import (
    StageFailure,
    is_current,
    recorded_stages,
    reproduce,
    stage_environment,
    stale_stages,
)
from flows.processes import ProcessGroups
from hiar.errors import UserError


def run(project, stage, on_line=lambda line: None):
    reproduce(project.folder, stage, ProcessGroups(), on_line)


def names(project, **options):
    return [stage.name for stage in stale_stages(project.folder, **options)]


def test_before_the_first_run_everything_is_stale_in_an_order_that_can_run(project):
    stages = stale_stages(project.folder)
    assert {stage.name for stage in stages} == {"codec@0", "distill@0-hiar", "distill@0-self-forcing", "score"}
    before = set()
    for stage in stages:
        assert stage.needs <= before
        before.add(stage.name)
    by_name = {stage.name: stage for stage in stages}
    assert by_name["distill@0-hiar"].needs == {"codec@0"}
    assert by_name["score"].needs == {"codec@0", "distill@0-hiar", "distill@0-self-forcing"}
    assert by_name["distill@0-hiar"].of_variant
    assert not by_name["codec@0"].of_variant


def test_empty_lists_of_variants_make_no_stages(project):
    project.change(compare={"init": [], "distill": [], "walked": []})
    assert names(project) == ["codec@0", "score"]
    project.change(compare={"init": ["hiar"], "distill": ["hiar"], "walked": []})
    assert names(project)[0] == "codec@0"  # more stages wait for it than for the init, which could also begin


def test_after_dvc_repro_nothing_is_stale_until_a_change_makes_its_stage_and_later_ones_stale(project):
    project.dvc("repro")
    assert names(project) == []
    assert is_current(project.folder, "distill@0-hiar")
    assert len(names(project, force=True)) == 4
    project.change(distill={"steps": 1})
    assert not is_current(project.folder, "distill@0-hiar")
    assert is_current(project.folder, "codec@0")
    other = project.folder / "runs" / "other"  # of an experiment that never ran here, seen from the project's folder
    (other / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "orders", ".dvc/config", "dvc.lock"):
        if (project.folder / name).is_file():
            shutil.copy(project.folder / name, other / name)
    assert not is_current(other, "codec@0")
    stages = {stage.name: stage for stage in stale_stages(project.folder)}
    assert set(stages) == {"distill@0-hiar", "distill@0-self-forcing", "score"}
    assert stages["distill@0-hiar"].reason == "changed: params.yaml"
    assert stages["score"].reason == "depends on a stage that will run"
    assert stages["distill@0-hiar"].needs == set()  # codec is up to date: nobody would run it
    assert stages["score"].needs == {"distill@0-hiar", "distill@0-self-forcing"}
    with (project.folder / "stage.py").open("a") as file:
        file.write("# changed\n")
    (project.folder / "out" / "codec-0").unlink()
    assert stale_stages(project.folder)[0].reason == "changed: stage.py; missing: out/codec-0"


def test_an_output_that_is_only_missing_from_the_cache_is_named_as_that(project):
    """As after a cache was emptied; nothing has changed."""
    project.dvc("repro")
    codec = md5((project.folder / "out" / "codec-0").read_bytes()).hexdigest()
    (project.folder / ".dvc" / "cache" / "files" / "md5" / codec[:2] / codec[2:]).unlink()
    assert stale_stages(project.folder)[0].reason == "not in cache: out/codec-0"


def test_recorded_stages_are_those_whose_outputs_are_in_the_cache(project, monkeypatch):
    """Seen from another working folder, as for an experiment; a stage that reads a folder needs all its files first."""
    project.dvc("repro")
    monkeypatch.chdir("/")
    before = yaml.safe_load((project.folder / "params.yaml").read_text())["seeds"]
    project.change(distill={"steps": 1})
    assert recorded_stages(project.folder) == {"codec@0"}
    project.dvc("repro")
    (project.folder / "dvc.lock").unlink()
    shutil.rmtree(project.folder / "out")
    assert {stage.reason for stage in stale_stages(project.folder)} == {"never run here"}
    students = {"distill@0-hiar", "distill@0-self-forcing"}
    assert recorded_stages(project.folder) == {"codec@0"} | students
    project.dvc("repro", "distill@0-hiar", "distill@0-self-forcing")
    assert project.times_begun("codec-0") == 1  # restored from the cache
    assert recorded_stages(project.folder) == {"codec@0", "score"} | students
    world = md5((project.folder / "metrics" / "world.json").read_bytes()).hexdigest()
    (project.folder / ".dvc" / "cache" / "files" / "md5" / world[:2] / world[2:]).unlink()  # one of two outputs
    assert recorded_stages(project.folder) == {"codec@0"} | students
    project.change(seeds=[*before, 1])
    assert "codec@1" not in recorded_stages(project.folder)
    for path in (project.folder / ".dvc" / "cache" / "files").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(project.folder / ".dvc" / "cache" / "files")
    assert recorded_stages(project.folder) == set()


def test_of_two_results_of_the_same_inputs_the_newer_counts(project):
    """As in DVC: results of the older one are stale."""
    project.order("codec-0", "fill 10")
    project.dvc("repro", "distill@0-hiar")
    assert recorded_stages(project.folder) == {"codec@0", "distill@0-hiar"}
    project.order("codec-0", "fill 20")
    project.dvc("repro", "--single-item", "--force", "codec@0")
    assert recorded_stages(project.folder) == {"codec@0"}


def test_a_reason_names_at_most_three_files(project):
    project.dvc("repro")
    paths = [f"in-{number}" for number in range(5)]
    for path in paths:
        (project.folder / path).touch()
    pipeline = project.folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("deps: [stage.py]", f"deps: [stage.py, {', '.join(paths)}]", 1))
    (codec,) = [stage for stage in stale_stages(project.folder) if stage.name == "codec@0"]
    assert codec.reason == "changed: in-0, in-1, in-2 and 2 more"


def test_a_pipeline_that_dvc_cannot_read_is_a_mistake(project):
    (project.folder / "dvc.yaml").write_text("stages: 3\n")
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        names(project)
    assert not is_current(project.folder, "codec@0")  # as far as anybody can tell
    assert recorded_stages(project.folder) == set()


def test_a_stage_s_lines_are_passed_on_without_dvc_s_hints(project):
    lines = []
    project.order("codec-0", "tell CUDA_VISIBLE_DEVICES")
    for force in (False, False, True):  # a stage that is up to date runs again only if forced
        on, groups = {"CUDA_VISIBLE_DEVICES": "5"}, ProcessGroups()
        reproduce(project.folder, "codec@0", groups, lines.append, force=force, variables=on)
    assert project.times_begun("codec-0") == 2
    assert lines.count("5") == 2
    assert "at work on codec-0" in lines
    assert not [line for line in lines if "dvc push" in line or "lock file" in line]
    assert names(project) == ["distill@0-hiar", "distill@0-self-forcing", "score"]


def test_a_mistake_keeps_its_exit_code_and_its_line(project):
    """DVC prints the command before the exit code, so the command may contain another "exited with"."""
    pipeline = project.folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("codec-${item.seed}\n", "codec-${item.seed} 'exited with 7'\n", 1))
    project.order("codec-0", "say error: params.yaml: codec.patch = 0: should be positive", "exit 2")
    with pytest.raises(StageFailure) as failure:
        run(project, "codec@0")
    assert failure.value.code == 2
    assert str(failure.value) == "codec@0: params.yaml: codec.patch = 0: should be positive"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_stage_killed_by_a_signal_has_the_shell_s_exit_code_and_the_signal_is_named(project, shell, monkeypatch):
    """dash, which is `sh` on Debian, says "Killed" after the stage's own last line."""
    monkeypatch.setenv("SHELL", shutil.which(shell))
    project.order("codec-0", "crash-once crashed")
    with pytest.raises(StageFailure) as failure:
        run(project, "codec@0")
    assert failure.value.code == 128 + 9
    assert str(failure.value) == "codec@0: was killed by SIGKILL; its last line: at work on codec-0"


@pytest.mark.parametrize(
    ("last_line", "reported"),
    [
        ("bash: line 1: 104 Killed                  hiar codec", False),
        ("/bin/sh: 104 Killed", False),
        ("Killed (core dumped)", False),
        ("Killed by a watcher", True),
    ],
)
def test_a_shells_message_about_a_signal_is_not_reported_as_the_stages_last_line(project, last_line, reported):
    project.order("codec-0", f"say {last_line}", "crash-once crashed")
    with pytest.raises(StageFailure) as failure:
        run(project, "codec@0")
    assert str(failure.value).endswith(last_line if reported else "at work on codec-0")


def test_a_failure_of_dvc_itself_is_reported(project):
    with pytest.raises(StageFailure, match="out/codec-0"):
        run(project, "distill@0-hiar")


@pytest.mark.parametrize(("full", "reason"), [(True, "No space left"), (False, "Read-only file system")])
def test_a_disk_that_dvc_cannot_write_is_a_mistake_and_not_tried_again(project, full, reason):
    """The stage itself succeeds; its output does not fit in DVC's cache, or may not be written there."""
    cache = project.folder / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", cache], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        project.dvc("config", "cache.dir", "cache")
        if full:
            project.order("codec-0", f"fill {1 << 20}")
        else:
            subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        with pytest.raises(StageFailure, match=reason) as failure:
            run(project, "codec@0")
    finally:
        subprocess.run(["umount", "-l", cache], check=True)
    assert failure.value.code == 2
    assert "\n" not in str(failure.value)
    assert f"DVC writes to {project.folder} (" in str(failure.value)
    assert re.search(rf" and {cache} \(0\.[01] MB free\): free some space there, or get permission", str(failure.value))


def test_a_stage_in_use_is_waited_for_and_not_run_twice(project):
    project.order("codec-0", "touch started", "wait go")
    command = [sys.executable, "-m", "dvc", "repro", "codec@0"]
    other = subprocess.Popen(command, cwd=project.folder, env=stage_environment(), stdout=subprocess.DEVNULL)
    try:
        wait_until((project.folder / "started").exists)
        with pytest.raises(UserError, match="in use"):
            names(project)

        def on_line(line):
            if "waiting" in line:
                (project.folder / "go").touch()

        run(project, "codec@0", on_line)
    finally:
        (project.folder / "go").touch()
        other.wait(300)
    assert project.times_begun("codec-0") == 1


def test_a_stage_waits_for_as_long_as_another_command_of_dvc_holds_the_workspace(project):
    """DVC itself waits for three seconds only."""
    from dvc.repo import Repo

    with Repo(os.fspath(project.folder)) as repo:
        repo.lock.lock()
        release = threading.Timer(7.0, repo.lock.unlock)
        release.start()
        run(project, "codec@0")
        release.join()
    assert project.times_begun("codec-0") == 1


def test_a_stage_of_a_killed_run_that_is_still_writing_is_waited_for(project, monkeypatch):
    """It saves its state after its DVC, which held the locks, has ended."""
    monkeypatch.setattr("flows.pipeline.BUSY_SECONDS", 0.0)
    project.order("codec-0", "say error: out.partial: another process is writing it; wait for it or stop it", "exit 2")
    lines = []

    def on_line(line):
        lines.append(line)
        if line.startswith("waiting for another"):
            project.order("codec-0")

    reproduce(project.folder, "codec@0", ProcessGroups(), on_line)
    assert "waiting for another process to finish codec@0" in lines
    assert project.times_begun("codec-0") == 2

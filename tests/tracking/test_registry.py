"""Students in MLflow's registry, with MLflow itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import command
from flows.processes import ProcessGroups
from flows.remote import PUSHED, remote_of
from flows.storing import store_and_register
from hiar.config import Params
from hiar.io.files import write_json, write_text
from hiar.stages.comparison import contenders
from hiar.tracking.spool import spool_folder, waiting
from hiar.tracking.stage import tracked
from tests.tracking.conftest import PARAMS_FILE
from tests.tracking.records import Records

Send = Callable[[], None]


def test_a_student_is_a_version_of_its_method_in_the_registry(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    """Registered twice, it exists once; the aliases move to the latest registration."""
    for seed, place, aliases in (
        (0, "s3://store/files/md5/aa/0.dir", ["seed-0", "best"]),
        (0, "s3://store/files/md5/aa/0.dir", ["seed-0"]),
        (1, "s3://store/files/md5/bb/1.dir", ["seed-1", "best"]),
        (0, "s3://store/files/md5/cc/2.dir", ["seed-0"]),  # trained again
    ):
        with tracked("distill", seed, "hiar", params, workspace) as run:
            run.model(place, aliases)
        send()
    records = Records(project)
    (model,) = records.client.search_registered_models()
    assert model.name == "named hiar"
    versions = {str(one.version): one for one in records.client.search_model_versions("name = 'named hiar'")}
    assert {number: one.source[-8:] for number, one in versions.items()} == {
        "1": "aa/0.dir",
        "2": "bb/1.dir",
        "3": "cc/2.dir",
    }
    assert {alias: str(version) for alias, version in model.aliases.items()} == {
        "seed-0": "3",
        "seed-1": "2",
        "best": "2",
    }
    trained = records.run("hiar seed 1")
    assert versions["2"].run_id == trained.info.run_id
    assert versions["2"].tags.items() >= {"experiment": "named", "method": "hiar", "seed": "1"}.items()
    assert versions["2"].tags["commit"] == trained.data.tags["commit"]


@pytest.mark.parametrize(("experiment", "registered"), [("it's", "it's hiar"), ("a:b", "a-b hiar")])
def test_a_student_of_an_oddly_named_experiment_is_registered_once(
    experiment: str, registered: str, params: Params, project: Path, workspace: Path, send: Send
) -> None:
    odd = workspace.rename(workspace.with_name(experiment))
    for alias in ("seed-0", "best"):
        with tracked("distill", 0, "hiar", params, odd) as run:
            run.model("s3://store/files/md5/aa/0.dir", [alias])
        send()
    (model,) = Records(project).client.search_registered_models()
    assert model.name == registered
    assert {alias: str(version) for alias, version in model.aliases.items()} == {"seed-0": "1", "best": "1"}


def test_at_an_experiments_end_scores_are_recorded_and_students_in_a_store_that_others_reach_registered(
    params: Params, project: Path, workspace: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(PARAMS_FILE, workspace / "params.yaml")
    summary: dict[str, Any] = {}
    outs = {}
    for place, one in enumerate(contenders(params)):
        figures = {"good": {"mean": 0.5, "se": None, "n": 1}}
        summary.setdefault(one.stage, {}).setdefault(one.variant, {})[f"seed-{one.seed}"] = figures
        outs[f"artifacts/seed-{one.seed}/{one.stage}/{one.variant}"] = f"{place:032}.dir"
    write_json(workspace / "metrics" / "summary.json", summary)
    lock = {"stages": {"all": {"outs": [{"path": path, "md5": md5} for path, md5 in outs.items()]}}}
    write_text(workspace / "dvc.lock", json.dumps(lock))
    monkeypatch.setattr(command, "SENDING_SECONDS", 0.0)
    for complete, setting, recorded in ((False, "", 0), (True, "off", 0), (True, "", len(outs))):
        monkeypatch.setenv("HIAR_TRACKING", setting)
        command._pass_on_records(workspace, complete)  # the scores, but not those of an earlier run after a failure
        assert len(waiting(spool_folder(project))) == recorded
    expected = len(outs)
    for url, students in (("/mnt/store", 0), ("s3://store/dvc", len(params.compare.distill))):
        write_text(workspace / ".dvc" / "config", f"[core]\nremote = r\n['remote \"r\"']\nurl = {url}\n")
        remote = remote_of(workspace)
        assert remote is not None
        remote.note(PUSHED, remote.state())  # by a run that was killed before the rest
        store_and_register(remote, ProcessGroups(), print, complete=False)
        assert len(waiting(spool_folder(project))) == expected
        expected += students
        for _ in range(2):
            store_and_register(remote, ProcessGroups(), print)
            assert len(waiting(spool_folder(project))) == expected
    send()
    found = {one.name: one.source for one in Records(project).client.search_model_versions()}
    assert found == {
        f"named {variant}": f"s3://store/dvc/files/md5/00/{outs[f'artifacts/seed-0/distill/{variant}'][2:]}"
        for variant in params.compare.distill
    }

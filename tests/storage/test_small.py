"""What gc keeps and deletes, what verify finds, uploads and reports: fast tests with a small store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import EndpointConnectionError
from commands import hiar
from typer.testing import CliRunner

from hiar.cli.app import app
from hiar.cli.storage import _size
from hiar.errors import UserError
from hiar.storage import upload as uploads
from hiar.storage.reports import share_report
from hiar.storage.retention import Plan, delete, figures_of, plan
from hiar.storage.runs import Run, key_of
from hiar.storage.store import Store, asking, listing, open_store, unfinished_uploads
from hiar.storage.upload import upload
from hiar.storage.verify import verify
from tests.storage.small_store import BUCKET, MOST_DELETED, SmallStore

NOW = datetime.now(UTC)
PREFIX = "hiar/"
WHO = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")


@pytest.fixture
def small() -> Iterator[SmallStore]:
    with SmallStore() as store:
        yield store
        store.shutdown()


@pytest.fixture
def root(tmp_path: Path, small: SmallStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose remote is the small store."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    remote = store\n"
        f"['remote \"store\"']\n    url = s3://{BUCKET}/hiar/\n    endpointurl = {small.url}\n"
        "    access_key_id = somebody\n    secret_access_key = hidden\n    region = x\n"
        f"['remote \"whole\"']\n    url = s3://{BUCKET}\n"
        f"['remote \"twin\"']\n    url = s3://{BUCKET}/twin\n    endpointurl = {small.url}\n"
        "    access_key_id = somebody\n    secret_access_key = hidden\n    region = x\n"
    )
    return tmp_path


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *WHO, *arguments], cwd=folder, check=True, capture_output=True)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


class StoredRun:
    """A run's objects in a store: keys by kind, and its dvc.lock."""

    def __init__(
        self,
        small: SmallStore,
        what: str,
        good: float | str,
        days: float,
        experiment: str = "a",
        metric: str = "good",
    ) -> None:
        when = ago(days)

        def keep(data: bytes, ending: str = "") -> str:
            name = hashlib.md5(data).hexdigest() + ending
            small.put(PREFIX + key_of(name), data, when)
            return name

        files = {name: f"{what} {name}".encode() for name in ("x.bin", "y.bin")} | {"shared": b"of all runs"}
        entries = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        files["manifest.json"] = json.dumps({"files": entries}).encode()
        self.files = {name: keep(data) for name, data in files.items()}
        members = [{"md5": name, "relpath": path} for path, name in self.files.items()]
        self.folder = keep(json.dumps(members).encode(), ".dir")
        about = (good + 0.05, good - 0.01) if isinstance(good, float) else (good,)
        figures = {"hiar": {f"seed-{seed}": {metric: {"mean": one}} for seed, one in enumerate(about)}}
        about = (good + 0.03, good - 0.07) if isinstance(good, float) else (good,)
        figures["other"] = {f"seed-{seed}": {metric: {"mean": one}} for seed, one in enumerate(about)}
        self.summary = keep(json.dumps({"distill": figures}).encode())
        outs = [
            {"path": "artifacts/model", "hash": "md5", "md5": self.folder, "size": 99, "nfiles": 4},
            {"path": "metrics/summary.json", "hash": "md5", "md5": self.summary, "size": 7 * len(what)},
        ]
        outs[1]["size"] = len(small.objects[PREFIX + key_of(self.summary)])
        # Words that another YAML version than DVC's reads as other types.
        words = {"params.yaml": {"precision": "no", "mode": "off", "time": "12:30:45"}}
        record = {"cmd": f"make {what}", "params": words, "outs": outs}
        self.record = small.put(f"{PREFIX}{record_key(record)}", as_yaml(record), when)
        self.lock = as_yaml({"schema": "2.0", "stages": {"make": record}})
        digest = hashlib.sha256(self.lock).hexdigest()
        self.stored = small.put(f"{PREFIX}locks/{experiment}/{digest}.lock", self.lock, when)

    @property
    def names(self) -> set[str]:
        """Its lock, its record, and its objects except the one that all runs share."""
        own = [name for path, name in self.files.items() if path != "shared"]
        objects = {key_of(name) for name in (*own, self.folder, self.summary)}
        return objects | {one.removeprefix(PREFIX) for one in (self.record, self.stored)}


def as_yaml(value: Any) -> bytes:
    from dvc.utils.serialize import dumps_yaml

    return dumps_yaml(value).encode()


def record_key(record: dict[str, Any]) -> str:
    from dvc.utils import dict_sha256

    return f"runs/ab/ab{0:062}/{dict_sha256(record, exclude=['size', 'nfiles'])}"


def reasons(found: Plan) -> dict[str, str]:
    """Why each run is kept, by its name."""
    return {kept.run.stages["make"]["cmd"].removeprefix("make "): kept.why for kept in found.runs}


def test_gc_deletes_exactly_what_nothing_keeps(small: SmallStore, root: Path, store: Store) -> None:
    """It keeps objects that are recent, shared, not ours, or referenced by a commit or the working tree."""
    tagged, best, third, fourth = (
        StoredRun(small, *one) for one in (("1", 0.1, 30), ("2", 0.9, 20), ("3", 0.2, 15), ("4", "none", 10))
    )
    last, other = StoredRun(small, "5", 0.3, 5), StoredRun(small, "6", 0.05, 40, experiment="b")
    here, recent = StoredRun(small, "7", 0.0, 50), StoredRun(small, "8", 0.0, 0.5, experiment="c")
    older = StoredRun(small, "9", 0.99, 3, experiment="c")
    del small.objects[here.stored]
    (root / "dvc.lock").write_bytes(tagged.lock)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    # A branch's run, pushed by another clone, whose lock was deleted; other runs of its experiment remain.
    branch = StoredRun(small, "10", 0.0, 50)
    git(root, "checkout", "--quiet", "-b", "branch")
    committed = root / "runs" / "a" / "dvc.lock"
    committed.parent.mkdir(parents=True)
    committed.write_bytes(branch.lock)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "other")
    committed.unlink()
    del small.objects[branch.stored]
    (root / "dvc.lock").write_bytes(here.lock)
    orphans = [small.put(f"{PREFIX}{key_of(f'{number:032x}')}", b"x", ago(9)) for number in range(MOST_DELETED + 5)]
    fresh = small.put(f"{PREFIX}{key_of('f' * 32)}", b"of a run under way", ago(0.9))
    theirs = small.put("elsewhere/files/md5/ab/" + "c" * 30, b"of another project", ago(90))
    note = small.put(f"{PREFIX}notes.txt", b"of somebody", ago(90))
    # A stage that has just ended, whose outputs were stored long ago: only its record references them.
    files = {"e" * 32: b"old", "d" * 32: b"as old, in a folder"}
    members = json.dumps([{"md5": "d" * 32, "relpath": "x"}]).encode()
    files[folder := f"{hashlib.md5(members).hexdigest()}.dir"] = members
    named = {small.put(f"{PREFIX}{key_of(name)}", data, ago(90)) for name, data in files.items()}
    made = {"cmd": "make early", "outs": [{"path": "early", "md5": "e" * 32}, {"path": "whole", "md5": folder}]}
    record = small.put(f"{PREFIX}{record_key(made)}", as_yaml(made), ago(0.1))
    # This record has one output that is kept and one that is not, so it is useless.
    made = {"cmd": "make both", "outs": [{"path": "x", "md5": last.summary}, {"path": "y", "md5": third.summary}]}
    useless = small.put(f"{PREFIX}{record_key(made)}", as_yaml(made), ago(30))
    old, young = small.begin(f"{PREFIX}large", ago(2)), small.begin(f"{PREFIX}large", ago(0.5))
    elsewhere = small.begin("elsewhere/large", ago(90))

    found = plan(store, root, last=1, best="good", days=1.0)
    found_reasons = reasons(found)
    assert len(found.runs) == len(found_reasons)  # each once, also if a commit or the working tree has it too
    assert all(re.fullmatch(r"commit [0-9a-f]{7,10}", found_reasons.pop(name)) for name in ("1", "10"))
    assert found_reasons == {
        "2": "best good", "3": "", "4": "", "5": "last 1", "6": "last 1, best good", "7": "here", "8": "last 1, recent",
        "9": "best good",
    }  # fmt: skip
    figures = {kept.run.stages["make"]["cmd"]: kept.figure for kept in found.runs}
    assert (figures["make 2"], figures["make 4"]) == (pytest.approx(0.9), None)
    going = third.names | fourth.names | {key.removeprefix(PREFIX) for key in (*orphans, useless)}
    assert set(found.delete) == going
    assert all(size == len(small.objects[PREFIX + key]) for key, size in found.delete.items())
    assert [one["UploadId"] for one in found.uploads] == [old]

    before = dict(small.objects)
    delete(store, found)
    names = [key for key in small.deleted if "/files/" not in key]
    assert sorted(names) == sorted(small.deleted[: len(names)])  # names are deleted before the objects they reference
    assert before.keys() - small.objects.keys() == {PREFIX + key for key in going}
    assert small.uploads.keys() == {young, elsewhere}
    assert {
        fresh,
        theirs,
        note,
        *named,
        record,
        tagged.stored,
        best.stored,
        last.stored,
        other.stored,
    } <= small.objects.keys()
    assert {older.stored, recent.stored, here.record, branch.record} <= small.objects.keys()
    assert plan(store, root, last=1, best="good", days=1.0).delete == {}


def test_gc_deletes_nothing_if_a_folder_list_or_lock_is_damaged(small: SmallStore, root: Path, store: Store) -> None:
    kept, lost = StoredRun(small, "1", 0.1, 30), StoredRun(small, "2", 0.2, 20)
    folder, lock = PREFIX + key_of(kept.folder), kept.stored
    whole = small.objects[folder]
    small.put(folder, whole[:-1], ago(30))
    with pytest.raises(UserError, match=r"\.dir: is damaged, so nothing is deleted; see `hiar storage verify`"):
        plan(store, root, last=3, best="good", days=1.0)
    small.put(folder, whole, ago(30))
    small.put(lock, kept.lock + b"# altered", ago(30))
    with pytest.raises(UserError, match=r"\.lock: is damaged, so nothing is deleted; see `hiar storage verify`"):
        plan(store, root, last=3, best="good", days=1.0)
    small.put(lock, kept.lock, ago(30))
    del small.objects[PREFIX + key_of(lost.folder)]  # from a kept run; `verify` reports it
    assert not set(plan(store, root, last=3, best="good", days=1.0).delete) & kept.names


def test_objects_referenced_since_the_plan_was_made_are_kept(small: SmallStore, root: Path, store: Store) -> None:
    """As by a run that reuses old results: it uploads only its records and its lock."""
    taken, whole, unused, _ = (StoredRun(small, str(good), good / 10, 30 - good) for good in range(4))
    found = plan(store, root, last=1, best="good", days=1.0)
    assert taken.names | whole.names | unused.names <= found.delete.keys()
    small.put(taken.record, small.objects[taken.record])
    lock = whole.lock + b"# of another run\n"
    small.put(f"{PREFIX}locks/b/{hashlib.sha256(lock).hexdigest()}.lock", lock)
    delete(store, found)
    left = {key.removeprefix(PREFIX) for key in small.objects}
    assert taken.names - left == {taken.stored.removeprefix(PREFIX)}
    assert whole.names - left == {one.removeprefix(PREFIX) for one in (whole.stored, whole.record)}
    assert not unused.names & left


def test_a_refused_deletion_is_reported_and_its_objects_are_kept(small: SmallStore, root: Path, store: Store) -> None:
    """The store reports one of several objects, in the answer to a request that succeeds."""
    old, _ = StoredRun(small, "1", 0.1, 30), StoredRun(small, "2", 0.2, 20)
    small.undeletable = {old.record}
    found = plan(store, root, last=1, best="good", days=1.0)
    with pytest.raises(UserError, match=r"^s3://lab/hiar: 1 objects were not deleted \(AccessDenied\)"):
        delete(store, found)
    assert {PREFIX + key_of(old.files["x.bin"]), old.record} <= small.objects.keys()


def test_gc_deletes_only_on_request_and_verify_exits_with_1_on_damage(small: SmallStore, root: Path) -> None:
    StoredRun(small, "1", 0.1, 30)
    best, recent = StoredRun(small, "2", 0.2, 20), StoredRun(small, "3", 0.0, 0.5)
    before = set(small.objects)
    assert " 7 objects, " in hiar("storage", "gc", "--last", "0", folder=root).stdout
    assert set(small.objects) == before
    assert " deleted" in hiar("storage", "gc", "--last", "0", "--delete", folder=root).stdout
    assert len(before) - len(small.objects) == 7
    assert {best.stored, recent.stored} <= small.objects.keys()
    assert "15 objects, 0 damaged" in hiar("storage", "verify", folder=root).stdout
    del small.objects[PREFIX + key_of(best.summary)]
    assert "14 objects, 1 damaged" in hiar("storage", "verify", folder=root, code=1).stdout


def test_the_best_run_is_chosen_by_the_metric_it_was_scored_by(small: SmallStore, root: Path, store: Store) -> None:
    """Less drift is better, whether by default or on request."""
    for number, drift in enumerate((0.7, 0.5, 0.9)):
        StoredRun(small, f"lite {number}", drift, 30 - number, metric="drift_lite")
        StoredRun(small, f"good {number}", drift, 30 - number, "b")
    for best, others in ((None, "best good"), ("drift_lite", "")):
        assert reasons(plan(store, root, last=0, best=best, days=1.0)) == {
            "lite 0": "", "lite 1": "best drift_lite", "lite 2": "", "good 0": "", "good 1": "", "good 2": others,
        }  # fmt: skip


def test_a_run_is_compared_by_what_all_of_its_students_have(small: SmallStore, store: Store) -> None:
    """And not at all if the store has no readable summary of it."""
    one = {"good": {"mean": 0.5}, "drift_lite": {"mean": 0.1}}
    students = {"hiar": {"seed-0": one, "seed-1": {"good": {"mean": 0.9}}}, "other": {"seed-0": one}}
    found = []
    for number, content in enumerate((json.dumps({"distill": students}), '{"distill": {}}', "{", None)):
        name = f"{number:032x}"
        if content is not None:
            small.put(PREFIX + key_of(name), content.encode())
        run = Run("a", "here", {"make": {"outs": [{"path": "metrics/summary.json", "md5": name}]}})
        found.append(figures_of(store, run, listing(store)))
    assert found == [{"good": pytest.approx((0.5 + 0.9 + 0.5) / 3)}, {}, {}, {}]


def test_runs_are_listed_with_what_keeps_them(small: SmallStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last run is the worst of its experiment; `ls` and `gc` agree on what gc deletes."""
    monkeypatch.chdir(root)
    old, best, last = (
        StoredRun(small, "1", 0.1, 30),
        StoredRun(small, "2", 0.23456, 20),
        StoredRun(small, "3", "none", 10),
    )

    def output_lines(*arguments: str) -> list[str]:
        run = CliRunner().invoke(app, ["storage", *arguments])
        assert run.exit_code == 0, run.exception
        return run.output.splitlines()

    head, *rows, total = output_lines("ls", "--last", "1", "--days", "5")
    assert re.split("  +", head) == ["experiment", "stored", "figure", "stages", "kept as"]
    when = {made: f"{ago(days):%Y-%m-%d %H:%M}" for made, days in ((old, 30), (best, 20), (last, 10))}
    assert [re.split("  +", row) for row in rows] == [
        ["a", when[last], "1", "last 1"],
        ["a", when[best], "good 0.2346", "1", "best good"],
        ["a", when[old], "good 0.1", "1", "- (gc deletes it)"],
    ]
    whole = sum(map(len, small.objects.values()))
    assert total == f"s3://{BUCKET}/hiar: {len(small.objects)} objects, {_size(whole)}"
    going = sum(len(small.objects[PREFIX + key]) for key in old.names)
    assert output_lines("gc", "--last", "1", "--days", "5") == [
        f"run of a, stored {when[old]}: is not kept",
        f"s3://{BUCKET}/hiar: {len(old.names)} objects, {_size(going)}, 0 unfinished uploads would be deleted; "
        "add --delete to delete them",
    ]
    assert not [row for row in output_lines("ls", "--last", "1", "--days", "31") if "gc deletes it" in row]
    assert [row for row in output_lines("ls", "--last", "1", "--best", "bad", "--days", "5") if "0.2" in row] == []
    worse = output_lines("gc", "--last", "1", "--best", "bad", "--days", "5")
    assert [row for row in worse if "is not kept" in row] == [
        f"run of a, stored {when[run]}: is not kept" for run in (best, old)
    ]
    assert output_lines("gc", "--remote", "twin")[0].startswith(
        f"s3://{BUCKET}/twin: 0 objects, 0 B, 0 unfinished uploads would"
    )


def test_by_default_three_runs_and_objects_of_two_weeks_are_kept(
    small: SmallStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for number, days in enumerate((40, 30, 20, 19)):
        StoredRun(small, str(number), number / 10, days)
    small.put(f"{PREFIX}{key_of('f' * 32)}", b"of a run under way", ago(13))
    small.put(f"{PREFIX}{key_of('e' * 32)}", b"of a run given up", ago(15))
    run = CliRunner().invoke(app, ["storage", "gc"])
    first, total = run.output.splitlines()
    assert first == f"run of a, stored {ago(40):%Y-%m-%d %H:%M}: is not kept"
    assert " 8 objects, " in total


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (1.5e9, "1.5 GB"),
        (2e15, "2e+03 TB"),
    ],
)
def test_sizes_are_in_units_of_a_thousand(count: float, said: str) -> None:
    assert _size(count) == said


def test_every_kind_of_damage_is_found(small: SmallStore, root: Path, store: Store) -> None:
    """In a store whose listing has several pages, including damage that only a manifest reveals."""
    small.page = 3
    runs = [StoredRun(small, str(number), 0.1, 1) for number in range(7)]
    assert verify(store, root) == ([], len(small.objects))
    keys = [PREFIX + key_of(run.files["x.bin"]) for run in runs]
    whole = small.objects[keys[1]]
    del small.objects[keys[0]]
    small.put(keys[1], whole[:-1])
    small.put(keys[2], whole)
    small.put(keys[3], b"")
    longer = PREFIX + key_of(runs[3].files["y.bin"])
    small.put(longer, small.objects[longer] + b"more")
    small.put(PREFIX + key_of(runs[4].folder), small.objects[PREFIX + key_of(runs[4].folder)][:-9])
    small.put(runs[5].record, small.objects[runs[5].record] + b"# more\n")
    small.put(runs[6].stored, runs[6].lock + b"\n")
    other = small.put(f"{PREFIX}{record_key({'cmd': 'make other'})}", small.objects[runs[0].record])
    nobody = [key_of("0" * 32), "notes.txt", "runs/ab/short/" + "0" * 64, "reports/x", "locks/a/notes.txt"]
    nobody.append(f"runs/cd/ab{0:062}/{'0' * 64}")  # not a record: its folder has another name
    surplus = [small.put(f"{PREFIX}{key}", b"x") for key in nobody]
    empty = small.put(f"{PREFIX}reports/a/{'1' * 64}/index.html", b"")
    report = small.put(f"{PREFIX}reports/a/{'0' * 64}/index.html", b"of another day")
    small.put("elsewhere/x", b"of another project")
    small.begin(f"{PREFIX}large")
    found, count = verify(store, root)
    kinds = {damage.key: damage.kind for damage in found}
    lost = {key.removeprefix(PREFIX): "surplus" for key in surplus}
    lost |= {key_of(runs[4].files[name]): "surplus" for name in ("x.bin", "y.bin", "manifest.json")}
    assert kinds == {
        **lost,
        keys[0].removeprefix(PREFIX): "missing",
        keys[1].removeprefix(PREFIX): "truncated",
        keys[2].removeprefix(PREFIX): "altered",
        keys[3].removeprefix(PREFIX): "truncated",
        longer.removeprefix(PREFIX): "altered",
        empty.removeprefix(PREFIX): "truncated",
        key_of(runs[4].folder): "truncated",
        runs[5].record.removeprefix(PREFIX): "altered",
        other.removeprefix(PREFIX): "altered",
        runs[6].stored.removeprefix(PREFIX): "altered",
        report.removeprefix(PREFIX): "altered",
        "large": "unfinished",
    }
    assert [(damage.key, damage.kind) for damage in found] == sorted(kinds.items())
    assert count == len(small.objects) - 1
    messages = {damage.key: damage.said for damage in found}
    size = len(small.objects[longer])
    assert messages[longer.removeprefix(PREFIX)].startswith(
        f"is {size} bytes, should be {size - len('more')}: y.bin in "
    )
    assert "unless it belongs to artifacts/model of experiment a" in messages[key_of(runs[4].files["x.bin"])]
    # If a folder's stored list is damaged, the copy in the project's cache identifies its files.
    (root / ".dvc" / "cache" / key_of(runs[4].folder)).parent.mkdir(parents=True)
    members = [{"md5": name, "relpath": path} for path, name in runs[4].files.items()]
    (root / ".dvc" / "cache" / key_of(runs[4].folder)).write_text(json.dumps(members))
    again = {damage.key: damage.kind for damage in verify(store, root)[0]}
    assert kinds.items() - again.items() == {
        (key_of(runs[4].files[name]), "surplus") for name in ("x.bin", "y.bin", "manifest.json")
    }
    (root / ".dvc" / "cache").rename(root / "elsewhere")
    with (root / ".dvc" / "config").open("a") as config:
        config.write(f"[cache]\n    dir = {root / 'elsewhere'}\n")
    assert {damage.key: damage.kind for damage in verify(store, root)[0]} == again


def test_a_missing_folder_list_is_reported_and_its_files_are_attributed(
    small: SmallStore, root: Path, store: Store
) -> None:
    run = StoredRun(small, "1", 0.1, 1)
    del small.objects[PREFIX + key_of(run.folder)]
    found, _ = verify(store, root)
    assert {damage.key: damage.kind for damage in found} == {
        key_of(run.folder): "missing",
        **{key_of(name): "surplus" for name in run.files.values()},
    }
    assert all("unless it belongs to artifacts/model of" in damage.said for damage in found if damage.kind == "surplus")


def test_a_store_is_verified_without_git(small: SmallStore, root: Path, store: Store) -> None:
    StoredRun(small, "1", 0.1, 1)
    shutil.rmtree(root / ".git")
    assert verify(store, root) == ([], len(small.objects))


def test_bytes_whose_md5_fits_are_compared_with_the_manifest_s_sha256(
    small: SmallStore, root: Path, store: Store
) -> None:
    """As for files made to collide, which neither name nor size reveals."""
    run = StoredRun(small, "1", 0.1, 1)
    data = small.objects[PREFIX + key_of(run.files["x.bin"])]
    listed = {"files": {"x.bin": {"size": len(data), "sha256": "0" * 64}}}
    manifest = json.dumps(listed).encode()
    names = run.files | {"manifest.json": hashlib.md5(manifest).hexdigest()}
    small.put(PREFIX + key_of(names["manifest.json"]), manifest)
    members = json.dumps([{"md5": name, "relpath": path} for path, name in names.items()]).encode()
    folder = f"{hashlib.md5(members).hexdigest()}.dir"
    small.put(PREFIX + key_of(folder), members)
    (root / "dvc.lock").write_text(
        yaml.safe_dump({"stages": {"make": {"cmd": "x", "outs": [{"path": "artifacts/model", "md5": folder}]}}})
    )
    for key in (run.stored, run.record):
        del small.objects[key]
    git(root, "add", "dvc.lock")
    git(root, "commit", "--quiet", "--message", "one")
    (root / "dvc.lock").unlink()  # the commit references it
    (damage,) = (one for one in verify(store, root)[0] if one.kind != "surplus")
    assert (damage.kind, damage.key) == ("altered", key_of(run.files["x.bin"]))
    assert damage.said.startswith("its SHA-256 is not its manifest's: x.bin in artifacts/model of experiment default")


def test_an_upload_resumes_with_the_missing_parts(small: SmallStore, store: Store, tmp_path: Path) -> None:
    """Even if the file has changed since, and there are others: an older one, and one with the same prefix."""
    small.page = 2
    path = tmp_path / "large"
    path.write_bytes(b"a" * 10 + b"b" * 10 + b"c" * 10 + b"d" * 10 + b"e")
    older, number = small.begin(f"{PREFIX}large", ago(1)), small.begin(f"{PREFIX}large")
    small.parts[older][3] = b"c" * 10
    small.begin(f"{PREFIX}large-one")
    small.parts[number] |= {1: b"a" * 10, 2: b"B" * 10, 4: b"d" * 10}
    assert upload(store, path, "large", "text/x", part=10)
    assert [part for _, part in small.sent] == [2, 3, 5]
    assert small.objects[f"{PREFIX}large"] == path.read_bytes()
    assert [one["Key"] for one in unfinished_uploads(store)] == [f"{PREFIX}large", f"{PREFIX}large-one"]
    assert not upload(store, path, "large", "text/x", part=10)  # the key exists
    small.sent.clear()
    assert upload(store, path, "in-parts", "text/x", part=40)
    assert upload(store, path, "at-once", "text/x", part=41)
    assert small.sent == [(f"{PREFIX}in-parts", 1), (f"{PREFIX}in-parts", 2), (f"{PREFIX}at-once", 0)]
    assert {small.kinds[f"{PREFIX}{key}"] for key in ("in-parts", "at-once")} == {"text/x"}
    path.write_bytes(b"other")
    assert not upload(store, path, "at-once", "text/x")
    assert len(small.objects[f"{PREFIX}at-once"]) == 41


def test_a_file_too_large_for_the_allowed_parts_is_refused(
    small: SmallStore, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_PARTS", 3)
    path = tmp_path / "large"
    path.write_bytes(bytes(31))
    with pytest.raises(UserError, match=r"large: is 31 bytes, more than 3 parts of 10"):
        upload(store, path, "large", "text/x", part=10)
    path.write_bytes(bytes(30))
    assert upload(store, path, "large", "text/x", part=10)


def test_links_to_a_report_expire_after_the_given_days(
    small: SmallStore, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = root / "runs" / "mine" / "reports"
    reports.mkdir(parents=True)
    with pytest.raises(UserError, match=r"index\.html: there is no report; run `hiar run mine` first"):
        share_report(store, root, "mine", 1)
    (reports / "index.html").write_text("<p>")
    (reports / "run.json").write_text("{}")
    links = dict(share_report(store, root, "mine", 0.5))
    assert links.keys() == {"index.html", "run.json"}
    assert all("X-Amz-Expires=43200&" in f"{link}&" for link in links.values())
    monkeypatch.chdir(root)
    run = CliRunner().invoke(app, ["storage", "report", "mine", "--days", "0.5"])
    shown = dict(line.split(": ") for line in run.output.splitlines())
    assert shown.keys() == links.keys()
    assert all("X-Amz-Expires=43200&" in f"{link}&" for link in shown.values())
    digest = hashlib.sha256(b"<p>").hexdigest()
    key = f"{PREFIX}reports/mine/{digest}/index.html"
    assert small.objects[key] == b"<p>"
    assert small.kinds[key].startswith("text/html")
    assert [kind for key, kind in small.kinds.items() if key.endswith(".json")] == ["application/json"]
    assert f"/{BUCKET}/{key}?" in links["index.html"]
    assert verify(store, root) == ([], 2)
    (root / "reports").mkdir()
    (root / "reports" / "index.html").write_text("<p>")
    share_report(store, root, None, 7)
    assert f"{PREFIX}reports/default/{digest}/index.html" in small.objects


def test_links_are_signed_as_every_store_accepts_it(root: Path) -> None:
    """For the region us-east-1, the default, boto3 has an older way, which other stores need not know."""
    config = root / ".dvc" / "config"
    config.write_text(config.read_text().replace("region = x", "region = us-east-1"))
    store = open_store(root)
    link = store.client.generate_presigned_url("get_object", store.where("x"))
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (403, "AccessDenied", "s3://lab/hiar: access is denied; ask for permission, or use other credentials"),
        (403, "SignatureDoesNotMatch", "s3://lab/hiar: the secret key does not match the access key; set AWS_SECRET"),
        (404, "NoSuchBucket", "s3://lab/hiar: there is no such bucket; create it, or fix the remote's url"),
        (403, "RequestTimeTooSkewed", "s3://lab/hiar: the clocks of this machine and of the store differ; set this"),
        (400, "Odd", "s3://lab/hiar: An error occurred (Odd) when calling the ListObjectsV2 operation: of the tests; "),
    ],
)
def test_a_refusal_of_the_store_is_one_line(small: SmallStore, store: Store, status: int, code: str, line: str) -> None:
    small.refusal = (status, code)
    with pytest.raises(UserError) as error:
        listing(store)
    assert str(error.value).startswith(line)


def test_a_remote_is_a_bucket_and_what_is_below_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, whole = open_store(root), open_store(root, "whole")
    assert [(one.bucket, one.prefix, one.url) for one in (named, whole)] == [
        ("lab", "hiar/", "s3://lab/hiar"),
        ("lab", "", "s3://lab"),
    ]
    config = root / ".dvc" / "config"
    before = config.read_text()
    config.write_text(re.sub("endpointurl = .*", "endpointurl = http://store.example:8333", before))
    elsewhere = [open_store(root)]  # own stores have no host name per bucket
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store.example:8333")
    config.write_text(re.sub(" *endpointurl = .*\n", "", before))
    elsewhere.append(open_store(root))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    for one in elsewhere:
        address = one.client.generate_presigned_url("get_object", one.where("x"))
        assert address.startswith("http://store.example:8333/lab/hiar/x?")
    config.write_text(before)
    with pytest.raises(UserError, match="check that the store and the network") as error, asking(named):
        raise EndpointConnectionError(endpoint_url="http://user:hidden@127.0.0.1:9")
    assert "hidden" not in str(error.value)
    for name in ("access_key_id", "secret_access_key"):
        config.write_text(re.sub(rf"\n *{name} = .*", "", config.read_text()))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(root))
    with pytest.raises(UserError, match="there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        listing(open_store(root))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    with pytest.raises(UserError, match=r"AWS_SECRET_ACCESS_KEY; fix its settings or the AWS_\* variables"):
        open_store(root)


def test_settings_of_a_remote_reach_the_store(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a self-signed certificate and temporary credentials."""
    pair = ("-keyout", tmp_path / "key.pem", "-out", tmp_path / "own.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=store", *pair]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("a certificate is made by openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    config = root / ".dvc" / "config"
    with SmallStore(context=context) as small:
        small.put(f"{PREFIX}x", b"x")
        plain = re.sub("endpointurl = .*", f"endpointurl = {small.url}", config.read_text())
        for setting in (f"ssl_verify = {tmp_path / 'own.pem'}", "ssl_verify = false"):
            config.write_text(plain.replace("region = x", f"region = x\n    session_token = short\n    {setting}"))
            assert listing(open_store(root)).keys() == {"x"}
        assert set(small.tokens) == {"short"}
        config.write_text(plain)
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"(?i)certificate"):
            patch.setattr(time, "sleep", lambda seconds: None)  # between retries
            listing(open_store(root))
        small.shutdown()

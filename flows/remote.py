"""DVC's remote during a run: outputs made elsewhere from the same inputs are fetched, outputs made here are pushed.

`python -m flows.remote reproduce [--force] STAGE` fetches or runs a stage and pushes its outputs (`fetch` does not
push); `python -m flows.remote push` pushes everything. Both work in the workspace that is the current folder, in
processes that are stopped like stages. `dvc repro --pull` and `dvc push --run-cache` do the same, but each of them
copies the records of every stage ever run (DVC's run cache), and assumes that a folder which was pushed once is still
complete; here only missing records are copied, after the data that they name.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from flows.needed import fetch_needed
from flows.processes import ProcessGroups, stage_environment
from hiar.errors import without_password
from hiar.io.files import write_text
from hiar.io.progress import Progress
from hiar.storage.runs import DEFAULT, outs_of

PUSHED = Path(".dvc", "tmp", "hiar-pushed")  # holds the state of the workspace that was last pushed as a whole
# How long that note is trusted: meanwhile `hiar storage gc` may have deleted objects that this workspace names.
PUSHED_SECONDS = 24 * 3600.0
# Timeouts for a remote that does not answer; botocore waits its own default, a minute, five times.
PATIENCE = {"connect_timeout": 10, "read_timeout": 60}


@dataclass
class Remote:
    """The remote of a workspace: its name, and whether it has failed in this run, which then goes on without it.

    closed: it refused a push, as a read-only one does; it is still fetched from.
    """

    workspace: Path
    name: str
    away: bool = False
    closed: bool = False

    @property
    def url(self) -> str:
        """Its address in the workspace's DVC settings."""
        from dvc.config import Config

        settings = Config(os.fspath(self.workspace / ".dvc"), validate=False)
        return str(settings["remote"].get(self.name, {}).get("url", ""))

    @property
    def away_line(self) -> str:
        """The beginning of lines that report a failure."""
        return f"remote '{self.name}': "

    @property
    def closed_line(self) -> str:
        """The beginning of lines that report a failed push."""
        return f"{self.away_line}nothing more is pushed: "

    @property
    def command(self) -> list[str]:
        """The command that reproduces a stage, to which the stage's name is added."""
        return [sys.executable, "-m", "flows.remote", "fetch" if self.closed else "reproduce"]

    def hear(self, line: str) -> None:
        """Note a failure that a command's line reports."""
        if line.startswith(self.closed_line):
            self.closed = True
        elif line.startswith(self.away_line):
            self.away = True

    def state(self) -> str:
        """A hash of what is to be pushed and where to: of dvc.lock and DVC's settings."""
        lock = self.workspace / "dvc.lock"
        config = [self.workspace / ".dvc" / name for name in ("config", "config.local")]
        return sha256(b"".join(path.read_bytes() for path in (lock, *config) if path.exists())).hexdigest()

    def has(self, done: Path) -> bool:
        """Whether the file ``done``, such as `PUSHED`, holds the present state."""
        path = self.workspace / done
        return path.exists() and path.read_text(encoding="utf-8") == self.state()

    def note(self, done: Path, state: str) -> None:
        """Write ``state`` to the file ``done``."""
        write_text(self.workspace / done, state)


def remote_of(workspace: Path) -> Remote | None:
    """The default remote that the workspace's DVC settings name (`dvc remote add --default`), if any."""
    from dvc.config import Config

    name = Config(os.fspath(workspace / ".dvc"), validate=False).get("core", {}).get("remote")
    return Remote(workspace, name) if name else None


def push(remote: Remote, groups: ProcessGroups, tell: Callable[[str], None]) -> bool:
    """Push everything that is not known to be there; return whether all is. A failure is one line."""
    if remote.has(PUSHED) and time.time() - (remote.workspace / PUSHED).stat().st_mtime < PUSHED_SECONDS:
        return True
    state = remote.state()

    def heard(line: str) -> None:
        remote.away |= line.startswith(remote.away_line)  # so that no link leads there
        if line:
            tell(line)

    command = [sys.executable, "-m", "flows.remote", "push"]
    if groups.run(command, remote.workspace, stage_environment(), heard) != 0:
        return False
    remote.note(PUSHED, state)
    return True


def main() -> int:
    """Do what the command line says and return the exit code; that of `dvc repro` unless it is a push."""
    from dvc.cli import main as dvc

    what, *options = sys.argv[1:]
    if what == "push":
        return 0 if _with_repo(_push, []) else 1
    stage = options[-1:]
    there = "--force" in options or _with_repo(_fetch, stage)
    code = int(dvc(["--wait-for-lock", "repro", "--single-item", *options]))
    if code == 0 and there and what == "reproduce":
        # In this process, as DVC and its S3 libraries take more than a second to load.
        _with_repo(_push, stage)
    return code


def _with_repo(act: Callable[[Any, str, Sequence[str]], None], stages: Sequence[str]) -> bool:
    """Call ``act`` with the open repository; return whether it succeeded. A failure is one line."""
    from dvc.config import Config
    from dvc.repo import Repo

    workspace = Path.cwd()
    config = Config(os.fspath(workspace / ".dvc"), validate=False)  # without DVC's defaults
    name = config["core"]["remote"]
    own = config["remote"].get(name, {})
    # verify: an object is not trusted before its hash was compared with its name.
    settings = {"verify": True} | (PATIENCE if own.get("url", "").startswith("s3://") else {}) | own
    try:
        with Repo(os.fspath(workspace), config={"remote": {name: settings}}, _wait_for_lock=True) as repo:
            act(repo, name, stages)
    except Exception as error:  # whatever a network, a store, its settings and its libraries lead to
        remote = Remote(workspace, name)
        begins = remote.closed_line if act is _push else remote.away_line
        print(f"{begins}{_reason(error)}; going on without it, the next run pushes what is missing there")
        return False
    return True


def _fetch(repo: Any, name: str, stages: Sequence[str]) -> None:
    """Fetch a stage's inputs, and its outputs if the remote has them for these inputs, into the workspace."""
    from dvc.repo import lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    with lock_repo(repo):
        _copy_records(repo.cloud.get_remote_odb(name, hash_name="md5-dos2unix"), repo.cache.legacy)
        for stage in (stage for target in stages for stage in repo.stage.collect(target)):
            fetch_needed(repo, stage)
            try:
                repo.stage_cache.restore(stage, pull=True)
            except RunCacheNotFoundError:
                continue


def _push(repo: Any, name: str, stages: Sequence[str]) -> None:
    """Push the outputs that dvc.lock names, of some stages or all, then the stages' records.

    Records that are there are renewed first: `hiar storage gc` keeps what recent records name, so their outputs stay.
    """
    from dvc.repo import lock_repo
    from dvc.utils.serialize import load_yaml

    lock = Path("dvc.lock")
    made = load_yaml(os.fspath(lock)).get("stages", {}) if lock.exists() else {}
    made = {stage: record for stage, record in made.items() if not stages or stage in stages}
    outputs = {out["md5"] for record in made.values() for out in outs_of(record)}

    def of_these(path: str) -> bool:
        """Whether it is the record of one of the stages; most others are ruled out without parsing."""
        text = Path(path).read_text(encoding="utf-8")
        return any(name in text for name in outputs) and load_yaml(path) in made.values()

    records = repo.cloud.get_remote_odb(name, hash_name="md5-dos2unix")
    _copy_records(repo.cache.legacy, records, of_these, anew=True)
    with lock_repo(repo):
        found = [stage for target in made for stage in repo.stage.collect(target)]
        wanted = {one for stage in found for some in stage.get_used_objs().values() for one in some}
    # Without the lock, for which other stages would wait: objects never change.
    store, cache = repo.cloud.get_remote_odb(name), repo.cache.local
    nowhere: list[Any] = []
    options = {"shallow": False, "validate_status": lambda status: nowhere.extend(status.missing)}
    with _counted(f"push to {name}") as callback:
        result = repo.cloud.transfer(cache, store, wanted, cache_odb=cache, callback=callback, **options)
    if result.failed:
        raise OSError(f"{len(result.failed)} of {len(result.failed) + len(result.transferred)} objects not stored")
    if nowhere:
        remedy = "`dvc commit --force` in the workspace puts its files back into the cache"
        raise OSError(f"{len(nowhere)} of {len(wanted)} objects are neither there nor in DVC's cache; {remedy}")
    _copy_records(repo.cache.legacy, records, of_these)
    if not stages and made:
        _copy_lock(lock, store)


def _copy_records(
    source: Any, target: Any, wanted: Callable[[str], bool] = lambda path: True, *, anew: bool = False
) -> None:
    """Copy the ``wanted`` records of stages that the target lacks; with ``anew``, those that it has, to renew them."""
    from dvc.fs.callbacks import Callback
    from dvc_objects.fs.generic import copy

    def records(store: Any) -> dict[str, str]:
        folder = store.fs.join(store.path, "runs")
        return {"/".join(store.fs.parts(path)[-2:]): path for path in store.fs.find(folder)}

    there = records(target)
    for record, path in records(source).items():
        if (record in there) != anew or not re.fullmatch(r"[0-9a-f]{64}/[0-9a-f]{64}", record) or not wanted(path):
            continue
        to = target.fs.join(target.path, "runs", record[:2], record)
        copy(source.fs, path, target.fs, to, callback=Callback())


def _copy_lock(lock: Path, store: Any) -> None:
    """Store the dvc.lock of a whole run beside the data; `hiar storage` sees from it what belongs together."""
    from dvc.fs import LocalFileSystem
    from dvc.fs.callbacks import Callback
    from dvc_objects.fs.generic import copy

    workspace = lock.absolute().parent
    of_project = workspace.parent.name == "runs" and (workspace.parents[1] / ".dvc").is_dir()
    experiment = workspace.name if of_project else DEFAULT
    fs, root = store.fs, store.fs.parent(store.fs.parent(store.path))  # store.path: files/md5 of the remote
    to = fs.join(root, "locks", experiment, f"{sha256(lock.read_bytes()).hexdigest()}.lock")
    copy(LocalFileSystem(), os.fspath(lock), fs, to, callback=Callback())  # one that is there becomes recent again


def _counted(label: str) -> Any:
    """A callback for DVC's transfers that shows how many objects are done."""
    from dvc.fs.callbacks import Callback

    class Counted(Callback):
        progress: Progress | None = None

        def set_size(self, size: int) -> None:
            self.progress = Progress(label, size, unit="objects")

        def relative_update(self, inc: int = 1) -> None:
            if self.progress is not None:
                self.progress.advance(inc)

        def close(self) -> None:
            if self.progress is not None:
                self.progress.__exit__(None, None, None)

    return Counted()


def _reason(error: Exception) -> str:
    """An error in one line, without passwords in addresses."""
    cause: BaseException = error
    while cause.__cause__ is not None and not str(cause).strip():
        cause = cause.__cause__
    words = " ".join(str(cause).split()) or type(cause).__name__
    return without_password(words)[:300]


if __name__ == "__main__":
    sys.exit(main())

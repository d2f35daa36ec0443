"""PostgreSQL as the database of Prefect and MLflow: SQLite locks when many runs report at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

from hiar.errors import RunFailed, UserError
from hiar.io.files import remove

USER = "hiar"
DATABASES = ("prefect", "mlflow")
DRIVERS = ("asyncpg", "psycopg2")  # for Prefect and MLflow


def run_as() -> list[str]:
    """The prefix for PostgreSQL's programs, which refuse to run as root: root runs them as user postgres."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def make_cluster(folder: Path, password: str) -> None:
    """Create the cluster and its databases if the folder does not exist; no server runs meanwhile.

    Raises UserError if PostgreSQL or a driver is not installed, or its user may not enter the folder, and RunFailed
    when one of its programs fails.
    """
    for program in ("initdb", "postgres"):
        if shutil.which(program) is None:
            raise UserError(
                f"HIAR_STACK_DATABASE = postgresql: {program} is not in PATH; install PostgreSQL "
                "(apt-get install postgresql) and add its folder, /usr/lib/postgresql/NN/bin, or use sqlite"
            )
    if missing := [name for name in DRIVERS if find_spec(name) is None]:
        raise UserError(
            f"HIAR_STACK_DATABASE = postgresql: {missing[0]} is not installed; start with `make stack`, which installs "
            "it, or use sqlite"
        )
    for above in reversed(folder.absolute().parents) if run_as() else ():
        if subprocess.call([*run_as(), "test", "-x", above], cwd="/") != 0:
            raise UserError(
                f"HIAR_STACK_DATABASE = postgresql: under root it runs as user postgres, who cannot enter {above}; "
                f"chmod o+x {above}, or run as another user"
            )
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir(mode=0o700)
    with NamedTemporaryFile("w", encoding="utf-8") as file:  # readable by its owner only
        file.write(password)
        file.flush()
        for path in (partial, file.name) if os.geteuid() == 0 else ():
            shutil.chown(path, "postgres", "postgres")
        settings = (f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={file.name}")
        _run("initdb", "-D", os.fspath(partial), *settings)
    for name in DATABASES:
        _run("postgres", "--single", "-D", os.fspath(partial), "postgres", said=f"CREATE DATABASE {name};\n")
    partial.rename(folder)


def _run(*command: str, said: str = "") -> None:
    """Run one of PostgreSQL's programs with ``said`` as its input. Raises RunFailed when it fails."""
    own = {**os.environ, "LC_ALL": "C"}
    run = subprocess.run(
        [*run_as(), *command], check=False, cwd="/", input=said, capture_output=True, text=True, env=own
    )
    if run.returncode != 0:
        raise RunFailed(f"{command[0]}: {(run.stderr.strip().splitlines() or ['it printed nothing'])[-1][:300]}")

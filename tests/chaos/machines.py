"""``python -m tests.chaos.machines``: two machines share an experiment; each stage runs once, with equal results.

Each machine has its own folder, home and network, in which only the stack's servers answer; they share a git
repository and DVC's remote. Needs the right to create network namespaces (root has it).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

from tests.commands import environment

from .lab import Lab

POOLS = {"one": ("experiments", "stages"), "two": ("stages",)}
RAN = re.compile(r"> hiar stage (.+?)\s*$", re.MULTILINE)


def main() -> int:
    if sys.argv[1:2] == ["inside"]:
        return inside(Path(sys.argv[2]), list(map(int, sys.argv[3].split(","))), sys.argv[4:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="hiar-machines-") as name:
        folder = Path(name)
        alone = folder / "alone"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", Path.cwd(), alone], check=True)
        command = [sys.executable, "-m", "hiar", "run", "smoke"]
        began = time.monotonic()
        subprocess.run(
            command, cwd=alone, env=environment() | {"PYTHONPATH": os.fspath(alone)}, check=True, capture_output=True
        )
        print(f"one machine: {time.monotonic() - began:.0f} s", flush=True)
        expected = made_by(alone)
        lab = Lab(folder / "project")
        machines: dict[str, subprocess.Popen[bytes]] = {}
        try:
            lab.share()
            lab.start()
            workers = ("work:experiments", "work:stages-0")
            lab.command("-m", "supervisor.supervisorctl", "-s", lab.supervisor, "stop", *workers)
            sockets = folder / "sockets"
            sockets.mkdir()
            ports = [int(lab.settings[name]) for name in ("HIAR_PREFECT_PORT", "HIAR_MLFLOW_PORT", "HIAR_S3_PORT")]
            start_forwarding(sockets, ports, outward=False)
            for machine, pools in POOLS.items():
                machines[machine] = start_machine(folder / machine, lab, sockets, ports, pools)
            began = time.monotonic()
            run = lab.fire()
            state = lab.end_of(run)
            print(f"two machines: {state} after {time.monotonic() - began:.0f} s", flush=True)
        finally:
            for process in machines.values():
                os.killpg(process.pid, signal.SIGTERM)
            for process in machines.values():
                process.wait()
            lab.stop()
        ran = {machine: RAN.findall((folder / machine / "log").read_text()) for machine in POOLS}
        (clone,) = (folder / "one" / "clones").glob("[0-9a-f]*[0-9a-f]")
        equal = made_by(clone) == expected
        once = set(Counter(stage for stages in ran.values() for stage in stages).values()) == {1}
        for machine, stages in ran.items():
            print(f"{machine}: {len(stages)} stages: {', '.join(stages)}")
        print(f"each stage once: {once}; results equal: {equal}")
        return 0 if state == "COMPLETED" and once and equal and all(ran.values()) else 1


def made_by(project: Path) -> dict[str, str]:
    """The hash of every file that the stages made, except manifests, which name the commit."""
    workspace = project / "runs" / "smoke"
    files = [path for name in ("artifacts", "metrics") for path in (workspace / name).rglob("*") if path.is_file()]
    return {
        os.fspath(path.relative_to(workspace)): sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json"
    }


def start_machine(
    folder: Path, lab: Lab, sockets: Path, ports: list[int], pools: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    for name in ("home", "clones", "tmp"):
        (folder / name).mkdir(parents=True)
    variables = {name: value for name, value in lab.settings.items() if name != "PYTHONPATH"}
    variables |= {
        "HOME": os.fspath(folder / "home"),
        "TMPDIR": os.fspath(folder / "tmp"),
        "PREFECT_HOME": os.fspath(folder / "home" / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "HIAR_CLONES": os.fspath(folder / "clones"),
        "HIAR_REPOSITORY": os.fspath(lab.folder),
        "HIAR_DEVICE_LOCKS": os.fspath(folder / "tmp" / "devices"),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{lab.settings['HIAR_MLFLOW_PORT']}",
        "PYTHONPATH": os.fspath(lab.folder),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        **lab.keys(),
    }
    command = [sys.executable, "-m", "tests.chaos.machines", "inside", sockets, ",".join(map(str, ports)), *pools]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            ["unshare", "--net", *map(os.fspath, command)],
            cwd=lab.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def inside(sockets: Path, ports: list[int], pools: list[str]) -> int:
    """Run inside a network namespace: forward the servers' ports, and run workers for ``pools`` until SIGTERM."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir(Path.home())
    workers = [
        subprocess.Popen([sys.executable, "-m", "flows.stack.worker", "--pool", pool, "--limit", "1"]) for pool in pools
    ]
    signal.signal(signal.SIGTERM, lambda *_: None)
    start_forwarding(sockets, ports, outward=True)
    return max(worker.wait() for worker in workers)


def start_forwarding(sockets: Path, ports: list[int], *, outward: bool) -> None:
    threading.Thread(target=lambda: asyncio.run(forward_ports(sockets, ports, outward=outward)), daemon=True).start()


async def forward_ports(sockets: Path, ports: list[int], *, outward: bool) -> None:
    """Connect the ports of two network namespaces by Unix sockets, which do not belong to any network.

    outward: from ports here to the sockets; else from the sockets to ports here.
    """

    def joined(port: int):
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = (
                    asyncio.open_unix_connection(sockets / str(port))
                    if outward
                    else asyncio.open_connection("127.0.0.1", port)
                )
                far_reader, far_writer = await there
                await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
            except OSError:
                writer.close()

        return connected

    servers = []
    for port in ports:
        here = (
            asyncio.start_server(joined(port), "127.0.0.1", port)
            if outward
            else asyncio.start_unix_server(joined(port), sockets / str(port))
        )
        servers.append(await here)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(main())

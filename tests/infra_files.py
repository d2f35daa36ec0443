"""The contents of infra/, read as their tools read them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from commands import ROOT

INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"


NAMES = {"prefect": "PREFECT", "mlflow": "MLFLOW", "store": "S3"}
PORTS = dict(line.split("=") for line in (INFRA / "stack" / "ports.env").read_text().splitlines() if line[0] != "#")
SERVERS = {name: int(PORTS[f"HIAR_{part}_PORT"]) for name, part in NAMES.items()}
POOLS = {one["work_pool"]["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
SECRETS = {  # what infra/secrets.sh writes
    "PGPASSWORD",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_API_AUTH_STRING",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))


def manifests() -> list[dict[str, Any]]:
    """Every object that is applied to a cluster, as written; kustomize's own files are left out."""
    found = [one for path in sorted(KUBERNETES.rglob("*.yaml")) for one in documents(path)]
    return [one for one in found if one["kind"] != "Kustomization"]


def pod_specs(tree: Any) -> list[dict[str, Any]]:
    """The pod specs anywhere in an object: mappings with a list of containers."""
    if isinstance(tree, list):
        return [spec for one in tree for spec in pod_specs(one)]
    if not isinstance(tree, dict):
        return []
    own = [tree] if "containers" in tree else []
    return own + [spec for one in tree.values() for spec in pod_specs(one)]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def units() -> dict[str, dict[str, list[str]]]:
    """The [Service] section of each systemd unit: the values of each key, in order."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted((INFRA / "systemd").glob("*.service")):
        keys = found[path.name.removeprefix("hiar-").removesuffix(".service").rstrip("@")] = {}
        for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            keys.setdefault(key, []).append(value)
    return found


def pools() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (INFRA / "pools").glob("*.json")}


def deployed(name: str) -> dict[str, Any]:
    """The container of a server or the worker in the cluster."""
    (spec,) = [
        pod_specs(one)[0]
        for one in manifests()
        if one["kind"] in ("Deployment", "StatefulSet") and one["metadata"]["name"] == name
    ]
    return spec["containers"][0]


def execute(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)


def unit_command(name: str) -> list[str]:
    """A unit's command with the paths of the image: programs by name, infra/ in /opt/infra."""
    (line,) = units()[name]["ExecStart"]
    words = [
        word.replace("/opt/hiar/infra", "/opt/infra").replace("/opt/hiar/.venv/bin/", "") for word in shlex.split(line)
    ]
    return [word.removeprefix("/usr/local/bin/") for word in words]


def environments() -> dict[str, dict[str, str | None]]:
    """The environment of each process that the files start, by file and name; None for a value that is a reference."""
    found: dict[str, dict[str, str | None]] = {}
    for name, service in compose()["services"].items():
        found[f"compose {name}"] = {
            key: None if str(value).startswith("${") else str(value)
            for key, value in service.get("environment", {}).items()
        }
    for number, spec in enumerate(pod_specs(manifests())):
        for one in containers(spec):
            found[f"kubernetes {one['name']} {number}"] = {
                each["name"]: each["value"] if "valueFrom" not in each else None for each in one.get("env", [])
            }
    clients = (KUBERNETES / "clients.env").read_text().split()
    found["kubernetes clients"] = dict(line.split("=", 1) for line in clients)
    for name, unit in units().items():
        found[f"systemd {name}"] = (
            dict(pair.split("=", 1) for line in unit["Environment"] for pair in line.split())
            if "Environment" in unit
            else {}
        )
    for name in ("docker", "kubernetes", "process"):
        default = pools()[name]["variables"]["properties"]["env"].get("default", {})
        found[f"pool {name}"] = {
            key: None if value.startswith("{{ prefect.blocks.secret.") else value for key, value in default.items()
        }
    sky = yaml.safe_load((INFRA / "skypilot.yaml").read_text())
    found["skypilot"] = sky["envs"] | sky["secrets"]
    return found


def filled(kind: str, **given: Any) -> dict[str, Any]:
    """A work pool's configuration as a worker fills it in, with defaults for what is not given."""
    from prefect.utilities.templating import apply_values

    pool = pools()[kind]
    defaults = {key: one["default"] for key, one in pool["variables"]["properties"].items() if "default" in one}
    return apply_values(pool["job_configuration"], defaults | given)

"""What several files of infra/ say of one thing is the same; what they start exists; what must be closed is closed."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import yaml
from commands import ROOT
from infra_files import INFRA, KUBERNETES, compose, containers, deployed, manifests, pod_specs, pools, said, units

SERVERS = {"prefect": 4200, "mlflow": 5000, "store": 8333}
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
SECRET = re.compile(r"PASSWORD|SECRET_(ACCESS_)?KEY$|ACCESS_KEY_ID|AUTH_STRING$|TOKEN")


def unit_command(name: str) -> list[str]:
    """A unit's command as the image would get it: programs by name, its files in their places, the port open to all."""
    (line,) = units()[name]["ExecStart"]
    words = [
        word.replace("/opt/hiar/infra", "/opt/infra").replace("/opt/hiar/.venv/bin/", "") for word in shlex.split(line)
    ]
    return [word.removeprefix("/usr/local/bin/") for word in words]


def open_to_all(words: list[str]) -> list[str]:
    """A server's command for a container: it listens on every address, which its network limits."""
    line = shlex.join(words)
    for option in ("--host ", "--host=", "-s3.ip.bind="):
        line = line.replace(f"{option}127.0.0.1", f"{option}0.0.0.0")
    return shlex.split(line)


@pytest.mark.parametrize("name", ["prefect", "mlflow", "store"])
def test_a_server_is_started_alike_everywhere(name: str) -> None:
    service, pod, unit = compose()["services"][name], deployed(name), unit_command(name)
    own = unit if name != "store" else [unit[1], "-dir=/data", *unit[3:]]
    assert pod["args"] == service["command"] == open_to_all(own)
    port = SERVERS[name]
    assert str(port) in " ".join(service["command"])
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert pod["ports"] == [{"containerPort": port}]
    (front,) = [one for one in manifests() if one["kind"] == "Service" and one["metadata"]["name"] == name]
    assert [one["port"] for one in front["spec"]["ports"]] == [port]


def test_a_worker_is_started_alike_everywhere() -> None:
    def option(words: list[str]) -> dict[str, str]:
        assert words[:3] == ["prefect", "worker", "start"]
        return dict(word.split("=", 1) for word in words[3:] if "=" in word)

    cpu, gpu = (option(compose()["services"][name]["command"]) for name in ("worker", "worker-gpu"))
    pod, unit = option(deployed("worker")["args"]), option(unit_command("worker"))
    assert cpu == gpu | {"--pool": "cpu"} == unit | {"--pool": "cpu"}
    for words in (cpu, gpu, unit, pod):
        template = Path(words["--base-job-template"])
        assert template.parent == Path("/opt/infra/pools") and template.stem in pools()
        assert template.stem == words["--type"], "the template is another type's than the worker"


def images(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {name for one in tree for name in images(one)}
    if not isinstance(tree, dict):
        return set()
    own = {tree["image"]} if isinstance(tree.get("image"), str) else set()
    return own | {name for one in tree.values() for name in images(one)}


def test_images_are_the_same_and_none_floats() -> None:
    (kustomize,) = [
        one
        for one in yaml.safe_load_all((KUBERNETES / "kustomization.yaml").read_text())
        if one["kind"] == "Kustomization"
    ]
    (tag,) = [f"{one['name']}:{one['newTag']}" for one in kustomize["images"]]
    of_cluster = {tag if name == "hiar" else name for name in images(manifests())}
    of_pools = {pools()[name]["variables"]["properties"]["image"]["default"] for name in ("docker", "kubernetes")}
    assert of_cluster == images(compose())
    assert of_pools == {tag}
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    for name in of_cluster:
        version = name.partition(":")[2]
        assert version and version != "latest", name
        assert not name.startswith("hiar:") or version in stages
    charts = [yaml.safe_load(path.read_text()) for path in (INFRA / "helm").glob("*.yaml")]
    named = [one.get("image") or one.get("worker", one.get("global", {}).get("prefect"))["image"] for one in charts]
    assert {f"{one['repository']}:{one.get('tag') or one['prefectTag']}" for one in named} == {tag}


def environments() -> dict[str, dict[str, str | None]]:
    """The environment of every process that the files start, by file and name; None for a value that is a reference."""
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


def in_a_container(name: str, value: str) -> str:
    """What a unit's variable would be in a container."""
    if (name, value) == ("PGHOST", "127.0.0.1"):
        return "postgres"
    for server, port in SERVERS.items():
        value = value.replace(f"127.0.0.1:{port}", f"{server}:{port}")
    return value.replace("/opt/hiar/infra", "/opt/infra")


def test_a_variable_has_one_value_but_for_places() -> None:
    """What differs between files does so because a container's servers are found by name, a machine's on loopback."""
    values: dict[str, set[str]] = {}
    for place, variables in environments().items():
        for name, value in variables.items():
            if (
                value is not None
                and name not in ("HOME", "PREFECT_HOME", "EXPERIMENT")
                and not name.startswith("HIAR_")
            ):
                values.setdefault(name, set()).add(in_a_container(name, value) if "systemd" in place else value)
    assert {name: found for name, found in values.items() if len(found) > 1} == {}
    assert {"AWS_ENDPOINT_URL", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PGHOST"} <= set(values)


def test_variables_are_known_to_whom_they_are_given() -> None:
    """A misspelt one is ignored in silence."""
    import mlflow.environment_variables as mlflow_settings
    from prefect.settings import get_current_settings
    from prefect.settings.legacy import _get_settings_fields

    prefect = set(_get_settings_fields(type(get_current_settings())))
    for place, variables in environments().items():
        for name in variables:
            if name.startswith("PREFECT_") and not name.startswith("PREFECT_INTEGRATIONS_"):
                assert name in prefect, f"{place}: {name}"
            if name.startswith("MLFLOW_"):
                assert hasattr(mlflow_settings, name) or name == "MLFLOW_FLASK_SERVER_SECRET_KEY", f"{place}: {name}"


def test_secrets_are_references_everywhere() -> None:
    for place, variables in environments().items():
        for name, value in variables.items():
            if SECRET.search(name) and not name.endswith(("_SECRET_NAME", "_SECRET_KEY")):
                assert value is None, f"{place}: {name} has its value written down"
            elif SECRET.search(name) and value is not None:
                assert name.startswith("PREFECT_INTEGRATIONS_KUBERNETES_WORKER_"), f"{place}: {name}"
    assert not [one for one in manifests() if one["kind"] == "Secret"]
    for spec in pod_specs(manifests()):
        for one in containers(spec):
            for each in one.get("env", []):
                if "valueFrom" in each:
                    named = each["valueFrom"]["secretKeyRef"]
                    assert named["name"] == "hiar" and named["key"] in SECRETS


def test_no_file_holds_what_looks_like_a_password() -> None:
    for path in INFRA.rglob("*"):
        if path.is_file() and path.name != ".env":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"://[^/\s:@${]+:[^/\s@${]+@", text), path
            assert not re.search(r"AKIA[0-9A-Z]{12}|-----BEGIN", text), path


def test_new_secrets_are_private_complete_and_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "secrets.sh").write_bytes((INFRA / "secrets.sh").read_bytes())
    made = said(["sh", str(tmp_path / "secrets.sh")])
    file = tmp_path / ".env"
    assert made.returncode == 0 and stat.S_IMODE(file.stat().st_mode) == 0o600
    pairs = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert set(pairs) == SECRETS
    assert pairs["PREFECT_API_AUTH_STRING"] == pairs["PREFECT_SERVER_API_AUTH_STRING"]
    assert pairs["MLFLOW_TRACKING_PASSWORD"] == pairs["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert not [value for value in pairs.values() if value in made.stdout + made.stderr and value != "hiar"]
    before = file.read_bytes()
    again = said(["sh", str(tmp_path / "secrets.sh")])
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1 and file.read_bytes() == before
    ignored = said(["git", "check-ignore", "infra/.env"], cwd=ROOT)
    assert ignored.returncode in (0, 128), "git would take the passwords"  # 128: a project without .git


def test_what_reads_a_secret_finds_it_written() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    assert asked <= SECRETS
    assert all(unit["EnvironmentFile"] == ["/etc/hiar/secrets.env"] for unit in units().values())


def test_every_server_that_can_be_reached_asks_who_it_is() -> None:
    for name, published in [(name, one) for name, one in compose()["services"].items() if "ports" in one]:
        assert all(port.startswith("127.0.0.1:") for port in published["ports"]), name
    given = environments()
    for place in ("compose prefect", *(one for one in given if one.startswith("kubernetes prefect "))):
        assert "PREFECT_SERVER_API_AUTH_STRING" in given[place], place
    for place in ("compose store", *(one for one in given if one.startswith("kubernetes store "))):
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(given[place]), place
    for command in (compose()["services"]["mlflow"]["command"], deployed("mlflow")["args"], unit_command("mlflow")):
        assert "--app-name=basic-auth" in command
        assert [word for word in command if word.startswith("--allowed-hosts=")] and "*" not in "".join(command)
    for name in ("prefect", "mlflow", "store"):
        assert "0.0.0.0" not in " ".join(unit_command(name)), "a machine's own servers are on its loopback address"
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    assert policies["nothing-in"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    services = [one for one in manifests() if one["kind"] == "Service"]
    assert {one["spec"].get("type", "ClusterIP") for one in services} == {"ClusterIP"}


def test_nothing_runs_as_root_or_may_become_it() -> None:
    text = (INFRA / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001"]
    for stage in ("cpu", "cuda"):
        assert re.search(rf"^FROM base AS {stage}$", text, re.MULTILINE), "a stage of its own user"
    for name, service in compose()["services"].items():
        assert service["image"].startswith("hiar:") or service["user"].split(":")[0] not in ("0", "root"), name
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged")
    started = pools()["kubernetes"]["job_configuration"]["job_manifest"]
    for spec in pod_specs([*manifests(), started]):
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in containers(spec):
            own = one["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}, one["name"]
            assert not own.get("privileged")
        token = spec.get("automountServiceAccountToken")
        assert token is False or spec["serviceAccountName"] == "worker"
    for name, unit in units().items():
        assert (
            unit["User"] == ["hiar"] and unit["NoNewPrivileges"] == ["true"] and unit["CapabilityBoundingSet"] == [""]
        ), name


def test_what_is_mounted_is_declared_and_what_is_asked_for_is_bounded() -> None:
    tree = compose()
    used = {one.split(":")[0] for service in tree["services"].values() for one in service.get("volumes", [])}
    assert {name for name in used if not name.startswith(".")} == set(tree["volumes"])
    assert all((INFRA / name).exists() for name in used if name.startswith("."))
    for name, service in tree["services"].items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
    claims = {one["metadata"]["name"] for one in manifests() if one["kind"] == "PersistentVolumeClaim"}
    maps = {one["metadata"]["name"] for one in manifests() if one["kind"] == "ConfigMap"} | {"clients"}
    accounts = {one["metadata"]["name"] for one in manifests() if one["kind"] == "ServiceAccount"}
    for owner in [*manifests(), pools()["kubernetes"]["job_configuration"]["job_manifest"]]:
        templates = {one["metadata"]["name"] for one in owner.get("spec", {}).get("volumeClaimTemplates", [])}
        for spec in pod_specs(owner):
            volumes = {one["name"]: one for one in spec.get("volumes", [])}
            mounted = {mount["name"] for one in containers(spec) for mount in one.get("volumeMounts", [])}
            assert mounted == set(volumes) | templates, owner["metadata"]
            assert spec.get("serviceAccountName", "run") in accounts
            for one in volumes.values():
                assert one.get("persistentVolumeClaim", {}).get("claimName", next(iter(claims))) in claims
                assert one.get("configMap", {}).get("name", "clients") in maps
            for one in containers(spec):
                assert {"cpu", "memory"} <= set(one["resources"]["requests"]), one["name"]
                assert "memory" in one["resources"]["limits"], one["name"]
                for source in one.get("envFrom", []):
                    assert source.get("configMapRef", source.get("secretRef"))["name"] == "clients"


def test_selectors_meet_what_they_select() -> None:
    labels = {}
    for one in manifests():
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels[one["metadata"]["name"]] = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels[one["metadata"]["name"]].items()
    for one in manifests():
        if one["kind"] == "Service":
            assert one["spec"]["selector"].items() <= labels[one["metadata"]["name"]].items()


def test_each_long_running_part_is_watched() -> None:
    for name in ("postgres", "store", "prefect", "mlflow", "worker"):
        assert "healthcheck" in compose()["services"][name], name
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(deployed(name)), name
        assert name == "postgres" or units()[name]["Restart"] == ["always"]


def commands() -> list[list[str]]:
    """Every command line of Prefect, MLflow and ours that the files start."""
    found = [compose()["services"][name]["command"] for name in ("prefect", "mlflow", "worker", "worker-gpu")]
    found += [deployed(name)["args"] for name in ("prefect", "mlflow", "worker")]
    found += [unit_command(name) for name in ("prefect", "mlflow", "worker")]
    found += [one["args"] for spec in pod_specs(manifests()) for one in spec["containers"] if one["name"] == "run"]
    (training,) = [one for one in manifests() if one["kind"] == "TrainJob"]
    found.append(training["spec"]["trainer"]["args"])
    return found


def test_command_lines_are_such_as_their_programs_take() -> None:
    """Each program's own parser reads them; nothing is started."""
    import mlflow.cli
    import typer
    from prefect.cli._app import _app as prefect

    import hiar.cli
    from hiar.cli.app import app

    assert hiar.cli.main
    ours = typer.main.get_command(app)
    read = set()
    for given in commands():
        words = given[given.index("hiar") :] if "hiar" in given else given
        if words[0] == "prefect":
            start, bound, *_ = prefect.parse_args(words[1:], print_error=False, exit_on_error=False)
            assert start.__name__ == "start" and bound.arguments
            read.add(tuple(words[:3]))
            continue
        command = mlflow.cli.server if words[0] == "mlflow" else ours.commands[words[1]]  # type: ignore[attr-defined]
        assert command.make_context(words[1], list(words[2:])).params
        read.add(tuple(words[:2]))
    started = {("prefect", "server", "start"), ("prefect", "worker", "start"), ("mlflow", "server")}
    assert read == started | {("hiar", "run"), ("hiar", "stage")}


def test_the_experiment_of_the_gpu_jobs_exists_and_fits_what_they_ask_for() -> None:
    text = yaml.safe_load((ROOT / "experiments" / "wan2.1-1.3b.yaml").read_text())
    gpus = {
        spec["containers"][0]["resources"]["requests"]["nvidia.com/gpu"]
        for spec in pod_specs(manifests())
        if "nodeSelector" in spec
    }
    assert gpus == {text["runtime"]["processes"]}
    assert f"#SBATCH --gpus-per-node={text['runtime']['processes']}\n" in (INFRA / "slurm.sbatch").read_text()
    assert set(yaml.safe_load((INFRA / "skypilot.yaml").read_text())["resources"]["accelerators"].values()) == gpus
    assert os.access(INFRA / "at-commit", os.X_OK)


def test_an_audit_that_could_not_look_is_none() -> None:
    audit = run_path(str(INFRA / "audit.py"))["verdict"]
    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "Dependency not found"}
    assert audit({"dependencies": [good]})[0] == 0
    assert audit({"dependencies": [good, skipped]})[0] == 2
    assert audit({"dependencies": [bad, skipped]}) == (1, ["b 2: CVE-1, mended in 3"])
    assert audit({"dependencies": []})[0] == 2


def test_the_docker_pool_finds_what_compose_made() -> None:
    tree, variables = compose(), pools()["docker"]["variables"]["properties"]
    assert variables["networks"]["default"] == [f"{tree['name']}_default"]
    assert [one.removeprefix(f"{tree['name']}_") for one in variables["volumes"]["default"]] == tree["services"][
        "worker"
    ]["volumes"]
    told = (INFRA / "README.md").read_text()
    for name, value in variables["env"]["default"].items():
        assert not value.startswith("{{") or (
            name in SECRETS and name.lower().replace("_", "-") in value and name in told
        )

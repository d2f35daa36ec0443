"""Secrets are kept out of files; servers, rights and resources are restricted."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from runpy import run_path

from commands import ROOT
from infra_files import (
    INFRA,
    SECRETS,
    compose,
    containers,
    deployed,
    environments,
    execute,
    filled,
    manifests,
    pod_specs,
    unit_command,
    units,
)

SECRET = re.compile(r"PASSWORD|SECRET_(ACCESS_)?KEY$|ACCESS_KEY_ID|AUTH_STRING$|TOKEN")


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
    made = execute(["sh", str(tmp_path / "secrets.sh")])
    file = tmp_path / ".env"
    assert made.returncode == 0 and stat.S_IMODE(file.stat().st_mode) == 0o600
    pairs = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert set(pairs) == SECRETS
    assert pairs["PREFECT_API_AUTH_STRING"] == pairs["PREFECT_SERVER_API_AUTH_STRING"]
    assert pairs["MLFLOW_TRACKING_PASSWORD"] == pairs["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert not [value for value in pairs.values() if value in made.stdout + made.stderr and value != "hiar"]
    before = file.read_bytes()
    again = execute(["sh", str(tmp_path / "secrets.sh")])
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1 and file.read_bytes() == before
    ignored = execute(["git", "check-ignore", "infra/.env"], cwd=ROOT)
    assert ignored.returncode in (0, 128), "git would take the passwords"  # 128: no .git


def test_every_secret_that_is_read_is_written() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    assert required <= SECRETS
    assert all(unit["EnvironmentFile"] == ["/etc/hiar/secrets.env"] for unit in units().values())


def test_every_reachable_server_requires_credentials() -> None:
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
    started = filled("kubernetes")["job_manifest"]
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


def test_mounts_are_declared_and_resources_limited() -> None:
    tree = compose()
    mounts = [one for service in tree["services"].values() for one in service.get("volumes", [])]
    # If a variable may name a folder instead, its default is a volume.
    used = {re.sub(r"^\$\{\w+:-(\w+)\}", r"\1", one).split(":")[0] for one in mounts}
    assert {name for name in used if not name.startswith(".")} == set(tree["volumes"])
    assert all((INFRA / name).exists() for name in used if name.startswith("."))
    for name, service in tree["services"].items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
    claims = {one["metadata"]["name"] for one in manifests() if one["kind"] == "PersistentVolumeClaim"}
    maps = {one["metadata"]["name"] for one in manifests() if one["kind"] == "ConfigMap"} | {"clients"}
    accounts = {one["metadata"]["name"] for one in manifests() if one["kind"] == "ServiceAccount"}
    for owner in [*manifests(), filled("kubernetes")["job_manifest"]]:
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


def test_an_audit_that_skipped_packages_or_gave_no_report_fails() -> None:
    audit = run_path(str(INFRA / "audit.py"))["verdict"]
    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "Dependency not found"}
    assert audit({"dependencies": [good]})[0] == 0
    assert audit({"dependencies": [good, skipped]})[0] == 2
    assert audit({"dependencies": [bad, skipped]}) == (1, ["b 2: CVE-1, fixed in 3"])
    assert audit({"dependencies": []})[0] == 2
    for report, code, line in (
        ({"dependencies": [good]}, 0, ""),
        ({"dependencies": [bad]}, 1, "b 2: CVE-1, fixed in 3"),
        ({"dependencies": [skipped]}, 2, "error: 1 of 1 packages were not checked"),
        (None, 2, "error: pip-audit gave no report"),
    ):
        text = "\n" if report is None else json.dumps(report)
        run = subprocess.run([sys.executable, INFRA / "audit.py"], input=text, capture_output=True, text=True)
        assert (run.returncode, run.stderr[: len(line)]) == (code, line)
        assert bool(run.stdout) == (code == 0)

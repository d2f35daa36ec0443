"""The files of infra/ agree with each other, and what they start exists."""

from __future__ import annotations

import json
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT
from infra_files import (
    INFRA,
    KUBERNETES,
    POOLS,
    SECRETS,
    SERVERS,
    compose,
    deployed,
    environments,
    filled,
    manifests,
    pod_specs,
    pools,
    unit_command,
    units,
)

WORKERS = ("experiments", "worker")
COMPOSED = (*WORKERS, "worker-gpu")
OURS = ["python", "-m", "flows.stack.worker"]  # of processes, which it ends when it is ended
PREFECTS = ["prefect", "worker", "start"]  # of jobs, which go on without their worker


def open_to_all(words: list[str]) -> list[str]:
    """A server's command in a container: it listens on every address, restricted by the container's network."""
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
        assert words[:3] in (OURS, PREFECTS)
        kind = {"--type": "process"} if words[:3] == OURS else {}
        return kind | dict(word.split("=", 1) for word in words[3:] if "=" in word)

    parents, cpu, gpu = (option(compose()["services"][name]["command"]) for name in COMPOSED)
    pods, unit = [option(deployed(name)["args"]) for name in WORKERS], option(unit_command("worker"))
    assert parents | {"--pool": "stages", "--limit": "1"} == cpu == gpu == unit | {"--pool": "stages"}
    # The pools that prefect.yaml deploys to have workers, and no others.
    assert {parents["--pool"], cpu["--pool"]} == {one["--pool"] for one in pods} == POOLS
    assert pods[0] | {"--pool": "stages"} == pods[1]
    for words in (parents, cpu, gpu, unit, *pods):
        template = Path(words["--base-job-template"])
        assert template.parent == Path("/opt/infra/pools") and template.stem in pools()
        assert template.stem == words["--type"], "the template is another type's than the worker"


def test_prefect_servers_build_their_pages_in_a_writable_folder() -> None:
    """Otherwise the server only logs the failure, and serves everything but its pages."""
    given = environments()
    assert compose()["services"]["prefect"]["volumes"] == ["prefect:/data"]
    assert deployed("prefect")["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert units()["prefect"]["StateDirectory"] == ["hiar/prefect"]
    found = {place: variables for place, variables in given.items() if "PREFECT_HOME" in variables}
    assert len(found) == 3
    for place, variables in found.items():
        pages, home = Path(variables["PREFECT_SERVER_UI_STATIC_DIRECTORY"] or ""), variables["PREFECT_HOME"]
        assert pages.parent == Path(home or ""), place


def test_a_watcher_runs_wherever_flows_run_and_gets_their_heartbeats() -> None:
    """A Kubernetes pool reports a lost run but resumes none; nobody reports the death of a process."""
    (of_cluster,) = [
        pod["containers"][0]
        for one in manifests()
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "watcher"
        for pod in pod_specs(one)
    ]
    commands = (compose()["services"]["watcher"]["command"], unit_command("watcher"), of_cluster["args"])
    (command,) = {tuple(one) for one in commands}
    waits = {one["name"]: one["value"] for one in of_cluster["env"]}["HIAR_PENDING_SECONDS"]
    patience = pools()["kubernetes"]["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert int(waits) > patience, "the worker tells of a pod that does not start"
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30" in (KUBERNETES / "clients.env").read_text()
    assert command[:2] == ("python", "-m") and find_spec(command[2])
    given = environments()
    for place in ("compose watcher", "compose worker", "systemd watcher", "systemd worker"):
        assert "PREFECT_API_URL" in given[place], place
    for worker in ("compose worker", "compose experiments", "systemd worker"):
        assert given[worker]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30", "the watcher goes by heartbeats"


def images(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {name for one in tree for name in images(one)}
    if not isinstance(tree, dict):
        return set()
    own = {tree["image"]} if isinstance(tree.get("image"), str) else set()
    return own | {name for one in tree.values() for name in images(one)}


def test_image_tags_agree_and_are_pinned() -> None:
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


def test_helm_charts_start_our_image_in_restricted_pods() -> None:
    """The charts' defaults start a script of another image, and keep capabilities that the namespace forbids."""
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    server, worker, mlflow = (
        yaml.safe_load((INFRA / "helm" / f"{name}.yaml").read_text())
        for name in ("prefect-server", "prefect-worker", "mlflow")
    )
    assert server["server"]["command"] == worker["worker"]["command"] == json.loads(line)
    contexts = [one["containerSecurityContext"] for one in (server["server"], worker["worker"])]
    contexts += [worker["worker"]["initContainer"]["containerSecurityContext"], mlflow["securityContext"]]
    contexts += [one["securityContext"] for one in mlflow["initContainers"]]
    assert all(one["capabilities"] == {"drop": ["ALL"]} for one in contexts)
    assert mlflow["podSecurityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    part_of = policies["servers"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert part_of == server["server"]["podLabels"] == worker["worker"]["podLabels"] == mlflow["extraPodLabels"]
    (known,) = policies["servers"]["podSelector"]["matchExpressions"]
    assert {server["nameOverride"], mlflow["fullnameOverride"]} == set(known["values"])
    readme = (INFRA / "README.md").read_text()
    for secret in (server["secret"]["name"], mlflow["backendStore"]["existingDatabaseSecret"]["name"]):
        assert f"create secret generic {secret} " in readme


def in_a_container(name: str, value: str) -> str:
    """The value of a unit's variable in a container."""
    if (name, value) == ("PGHOST", "127.0.0.1"):
        return "postgres"
    for server, port in SERVERS.items():
        value = value.replace(f"127.0.0.1:{port}", f"{server}:{port}")
    return value.replace("/opt/hiar/infra", "/opt/infra").replace("/var/lib/hiar/prefect", "/data")


def test_a_variable_has_one_value_apart_from_addresses_and_paths() -> None:
    """Values differ between files only because containers find servers by name, and machines on loopback."""
    values: dict[str, set[str]] = {}
    for place, variables in environments().items():
        for name, value in variables.items():
            if value is not None and name not in ("HOME", "EXPERIMENT") and not name.startswith("HIAR_"):
                values.setdefault(name, set()).add(in_a_container(name, value) if "systemd" in place else value)
    assert {name: found for name, found in values.items() if len(found) > 1} == {}
    assert {"AWS_ENDPOINT_URL", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PGHOST"} <= set(values)


def test_prefect_and_mlflow_know_the_variables_they_are_given() -> None:
    """A misspelt one would be ignored silently."""
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


def test_selectors_match_the_labels_of_their_pods() -> None:
    labels = {}
    for one in manifests():
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels[one["metadata"]["name"]] = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels[one["metadata"]["name"]].items()
    for one in manifests():
        if one["kind"] == "Service":
            assert one["spec"]["selector"].items() <= labels[one["metadata"]["name"]].items()


def test_each_long_running_part_has_a_health_check() -> None:
    for name in ("postgres", "store", "prefect", "mlflow", *WORKERS):
        assert "healthcheck" in compose()["services"][name], name
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(deployed(name)), name
        assert name in ("postgres", "experiments") or units()[name]["Restart"] == ["always"]


def commands() -> list[list[str]]:
    """Every command line of Prefect, MLflow and our own that the files start."""
    found = [compose()["services"][name]["command"] for name in ("prefect", "mlflow", *COMPOSED)]
    found += [deployed(name)["args"] for name in ("prefect", "mlflow", *WORKERS)]
    found += [unit_command(name) for name in ("prefect", "mlflow", "worker")]
    found += [one["args"] for spec in pod_specs(manifests()) for one in spec["containers"] if one["name"] == "run"]
    (training,) = [one for one in manifests() if one["kind"] == "TrainJob"]
    found.append(training["spec"]["trainer"]["args"])
    return found


def test_command_lines_are_valid_for_their_programs() -> None:
    """Each program's own parser checks them; nothing is started."""
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
        if words[:3] == OURS:  # which passes its options on
            words = [*PREFECTS, *words[3:]]
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


def test_the_experiment_of_the_gpu_jobs_uses_the_gpus_they_request() -> None:
    text = yaml.safe_load((ROOT / "experiments" / "wan2.1-1.3b.yaml").read_text())
    gpus = {
        spec["containers"][0]["resources"]["requests"]["nvidia.com/gpu"]
        for spec in pod_specs(manifests())
        if "nodeSelector" in spec
    }
    assert gpus == {text["runtime"]["processes"]}
    assert f"#SBATCH --gpus-per-node={text['runtime']['processes']}\n" in (INFRA / "slurm.sbatch").read_text()
    sky = yaml.safe_load((INFRA / "skypilot.yaml").read_text())
    assert set(sky["resources"]["accelerators"].values()) == gpus
    assert " sh infra/at-commit " in sky["run"], "its permission to execute does not survive SkyPilot's bucket"
    assert os.access(INFRA / "at-commit", os.X_OK)
    limit = compose()["services"]["worker-gpu"]["deploy"]["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("G")) >= text["runtime"]["memory_gb"]


def test_read_only_workers_can_write_what_their_libraries_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC opens no repository without its cache, and torch loads what it compiles from /tmp."""
    from dvc.dirs import site_cache_dir

    for name in COMPOSED:
        service = compose()["services"][name]
        assert service["read_only"] and service["tmpfs"] == ["/tmp:exec"], name
        monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
        for variable, value in service["environment"].items():
            if variable.startswith("DVC_"):
                monkeypatch.setenv(variable, value)
        places = [one.rpartition(":")[2] for one in service["volumes"]]
        assert any(Path(site_cache_dir()).is_relative_to(one) for one in places), name


def test_runs_reach_the_servers_with_the_labels_that_prefect_gives_them() -> None:
    """Its worker overwrites some labels of the pods that it starts (test_schemas.py asks it)."""
    labels = filled("kubernetes")["job_manifest"]["spec"]["template"]["metadata"]["labels"]
    labels |= {"app.kubernetes.io/part-of": "prefect"}
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    for name in ("servers", "store"):
        (rule,) = policies[name]["ingress"]
        assert [one for one in rule["from"] if one["podSelector"]["matchLabels"].items() <= labels.items()], name


def test_the_docker_pool_finds_what_compose_made() -> None:
    tree, variables = compose(), pools()["docker"]["variables"]["properties"]
    assert variables["networks"]["default"] == [f"{tree['name']}_default"]
    of_every_host = [one for one in tree["services"]["worker"]["volumes"] if "${" not in one]
    assert [one.removeprefix(f"{tree['name']}_") for one in variables["volumes"]["default"]] == of_every_host
    readme = (INFRA / "README.md").read_text()
    for name, value in variables["env"]["default"].items():
        assert not value.startswith("{{") or (
            name in SECRETS and name.lower().replace("_", "-") in value and name in readme
        )


def test_all_workers_have_the_base_models_in_one_place() -> None:
    """In one place, since checkpoints refer to them there; set only if this machine has a folder of them."""
    commands = {name: " ".join(one.get("command", [])) for name, one in compose()["services"].items()}
    workers = [compose()["services"][name] for name, line in commands.items() if "worker" in line.split(" --")[0]]
    assert len(workers) == 3
    for worker in workers:
        assert worker["environment"]["HIAR_MODELS"] == "${HIAR_MODELS:+/models}"
        assert any(one.startswith("${HIAR_MODELS:-") and one.endswith(":/models") for one in worker["volumes"])

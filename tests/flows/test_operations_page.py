"""Every command of docs/operations.md: run if a test can afford it, otherwise parsed by its program."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.stack.settings import open_stack
from hiar.storage.store import open_store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:sh)?\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def block_with(words):
    (block,) = [block for block in BLOCKS if words in block]
    return block


def shell(text, folder, **settings):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HIAR_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    environment = inherited | {"PATH": path, "PYTHONPATH": str(ROOT)} | settings
    run = subprocess.run(["sh", "-e"], cwd=folder, env=environment, input=text, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_code_block_of_the_page_has_a_test():
    heads = ("make stack ", "set -a", "prefect deployment run", "python -", "dvc remote add --default store")
    assert [next((head for head in heads if head in block), block) for block in BLOCKS] == list(heads)


def test_a_shell_that_uses_the_stack_finds_its_store(tmp_path):
    keys = open_stack(tmp_path).keys
    show = 'printf \'%s\n\' "$AWS_ACCESS_KEY_ID" "$PREFECT_API_URL" "$MLFLOW_TRACKING_URI"\n'
    output = shell("dvc init --quiet --no-scm\n" + block_with("set -a") + show, tmp_path)
    assert output.splitlines()[-3:] == [
        keys["AWS_ACCESS_KEY_ID"],
        "http://127.0.0.1:4200/api",
        "http://127.0.0.1:5000",
    ]
    store = open_store(tmp_path)
    assert store.url == "s3://hiar/dvc"
    assert store.client.meta.endpoint_url == "http://127.0.0.1:8333"


def test_a_remote_of_the_project_is_committed(tmp_path):
    lines = [line for line in block_with("dvc remote add --default").splitlines() if not line.startswith("hiar ")]
    who = "git init --quiet\ngit config user.name tests\ngit config user.email tests@localhost\ndvc init --quiet\n"
    shell(who + "\n".join(lines) + "\n", tmp_path)
    store = open_store(tmp_path)
    assert (store.bucket, store.prefix) == ("BUCKET", "hiar/")
    assert "BUCKET" in shell("git show HEAD:.dvc/config", tmp_path)


@pytest.mark.parametrize("line", block_with("prefect deployment run").splitlines())
def test_prefect_deployment_run_commands_name_a_deployment_and_valid_parameters(line):
    from prefect.flows import load_flow_from_entrypoint

    words = shlex.split(line, comments=True)
    assert words[:3] == ["prefect", "deployment", "run"]
    name, options, values = words[3], words[4::2], words[5::2]
    assert set(options) == {"-p"} and len(options) == len(values)
    given = dict(value.split("=", 1) for value in values)
    (deployed,) = [one for one in DEPLOYMENTS if name.endswith(f"/{one['name']}")]
    with pytest.MonkeyPatch.context() as patch:  # Prefect leaves the script's folder in sys.path
        patch.setattr("sys.path", [*sys.path])
        flow = load_flow_from_entrypoint(f"{ROOT / deployed['entrypoint']}")
    assert name == f"{flow.name}/{deployed['name']}"
    assert set(given) <= set(flow.validate_parameters(given))


def test_the_backup_command_restores_the_stack(tmp_path):
    (command,) = re.findall(r"`(tar [^`]*)`", PAGE)
    keys = open_stack(tmp_path).keys
    shell(f"{command}\nmv .hiar old\nmkdir .hiar\ntar -C .hiar -xzf stack.tgz\n", tmp_path)
    assert open_stack(tmp_path).keys == keys
    assert (tmp_path / ".hiar" / "stack" / "secrets.env").stat().st_mode & 0o777 == 0o600

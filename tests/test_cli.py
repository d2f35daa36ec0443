"""The command line, run as a command: help at once, mistakes in one line with exit code 2."""

import shutil
import subprocess
import sys

import pytest
from commands import ROOT, hiar


def mistake(*arguments, folder):
    """The line that a mistake is answered with."""
    run = hiar(*arguments, folder=folder, code=2)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def project(tmp_path):
    """A folder with the parameters and experiments of the project, to spoil."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def spoil(project, old, new):
    path = project / "params.yaml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "command", [[], ["run"], ["stage"], ["sample"], ["stream"], ["score"], ["config"], ["config", "show"]]
)
def test_help_needs_nothing_heavy(command):
    code = (
        "import sys; sys.argv[1:] = {arguments!r}; from hiar.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {{'torch', 'numpy', 'diffusers', 'prefect', 'mlflow', 'dvc', 'hiar.config'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    ).format(arguments=[*command, "--help"])
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Usage: ")


def test_without_arguments_the_help_is_shown():
    assert "Commands:" in hiar(folder=ROOT).stdout


def test_config_check_and_show_merge_the_experiment(project):
    assert "valid" in hiar("config", "check", folder=project).stdout
    (project / "experiments" / "mine.yaml").write_text("sample: {frames: 90}\n")
    assert "valid" in hiar("config", "check", "mine", folder=project).stdout
    assert "  frames: 90\n" in hiar("config", "show", "mine", folder=project).stdout


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "freq_dim: 64",
            "freq_dim: 64\n  freq_dims: 64",
            "model.freq_dims = 64: unknown parameter; did you mean 'freq_dim'?",
        ),
        ("  layers: 4", "  layers: four", "model.layers = 'four': input should be a valid integer"),
        ("window: 15", "window: 2", "video.window = 2: must be a multiple of block = 3 and no smaller than one block"),
        ("frames: 15", "frames: 16", "video.frames = 16: must be a multiple of block = 3; try 15"),
        ("distill: [self-forcing,", "distill: [self-forcin,", "compare.distill = 'self-forcin': no such variant; did"),
        ("seeds: [0]", "seeds: [0", "is not valid YAML"),
    ],
)
def test_parameters_that_are_not_valid(project, old, new, line):
    spoil(project, old, new)
    for command in (["config", "check"], ["run"], ["stage", "codec", "--seed", 0]):
        assert mistake(*command, folder=project).startswith(f"params.yaml: {line}")
    assert {path.name for path in project.iterdir()} == {"params.yaml", "experiments"}


def test_an_error_in_an_experiment_names_its_file(project):
    (project / "experiments" / "mine.yaml").write_text("sample: {frames: 91}\n")
    assert mistake("run", "mine", folder=project).startswith("experiments/mine.yaml: sample.frames = 91: must be a")
    assert not (project / "runs").exists()


def test_an_unknown_experiment_is_answered_with_the_closest(project):
    line = mistake("run", "smok", folder=project)
    assert line == "experiment 'smok': there is no experiments/smok.yaml; did you mean 'smoke'?"


def test_outside_of_a_project(tmp_path):
    assert mistake("run", folder=tmp_path).startswith("params.yaml: no such file")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["distil"], "stage 'distil': no such stage; known: codec, "),
        (["codec"], "--seed: is missing; stage codec needs it"),
        (["codec", "--seed", "x"], "Invalid value for '--seed'"),
        (["codec", "--seed", "0", "--variant", "hiar"], "--variant = hiar: stage codec takes no such option"),
        (["distill", "--seed", "0", "--variant", "hier"], "variant 'hier': no such variant; did you mean 'hiar'?"),
        (["sample", "--seed", "0", "--model", "student", "--variant", "hiar"], "--model = student: is not a model"),
        (["sample", "--seed", "0", "--model", "init"], "--variant: is missing; stage sample needs it"),
        (
            ["sample", "--seed", "0", "--model", "teacher", "--variant", "hiar"],
            "--variant = hiar: stage sample takes no",
        ),
    ],
)
def test_a_stage_that_cannot_be_called_so(project, arguments, line):
    assert mistake("stage", *arguments, folder=project).startswith(line)


def sample(project, *arguments):
    return mistake("sample", "--checkpoint", "nowhere", "--frames", 30, "--out", "out", *arguments, folder=project)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "prompts.txt: holds no prompt; write one a line"),
        (b"\n  \n", "prompts.txt: holds no prompt; write one a line"),
        (b"a disc\ncaf\xe9\n", "prompts.txt: line 2: byte 10 = 0xe9 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_prompt_files_that_cannot_be_used(project, content, line):
    (project / "prompts.txt").write_bytes(content)
    assert sample(project, "--prompts", "prompts.txt") == line
    assert not (project / "out").exists()


def test_prompts_that_are_not_there_or_given_twice(project):
    assert sample(project, "--prompts", "no.txt").startswith("no.txt: no such file")
    assert sample(project).startswith("--prompt, --prompts: give exactly one")
    assert sample(project, "--prompts", "no.txt", "--prompt", "a disc").startswith("--prompt, --prompts: give exactly")
    assert sample(project, "--prompt", " ").startswith("--prompt = ' ': is empty")


def test_a_walk_that_does_not_exist(project):
    line = sample(project, "--prompt", "a disc", "--order", "diag")
    assert line == "--order = diag: is none of block_first, step_first, diagonal; choose one of them"
    assert sample(project, "--prompt", "a disc", "--context", "dirty").startswith(
        "--context = dirty: is none of clean,"
    )
    assert "no such option" in sample(project, "--contxt", "clean").lower()


def test_a_workspace_that_cannot_be_written(project):
    (project / "runs").write_text("in the way")
    assert mistake("run", "smoke", folder=project).startswith("runs/smoke/.dvc: not a directory; ")

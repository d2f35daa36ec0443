"""The command line, run as a command: help without heavy imports, mistakes in one line with exit code 2."""

import shutil
import subprocess
import sys

import pytest
from commands import ROOT, hiar

from hiar.errors import RunFailed, UserError


def mistake(*arguments, folder):
    """The one error line of a command."""
    run = hiar(*arguments, folder=folder, code=2)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def project(tmp_path):
    """A folder with copies of the project's parameters and experiments, for a test to change."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def spoil(project, old, new):
    path = project / "params.yaml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["stage"], ["sample"], ["stream"], ["live"], ["score"], ["tables"], ["config"], ["config", "show"]],
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; sys.argv[1:] = {arguments!r}; from hiar.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {{'torch', 'numpy', 'diffusers', 'prefect', 'mlflow', 'dvc', 'hiar.config'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    ).format(arguments=[*command, "-h" if command == ["stage"] else "--help"])
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Usage: ")


def test_without_arguments_the_help_is_shown():
    assert "Commands:" in hiar(folder=ROOT).stdout


def test_config_check_and_show_merge_the_experiment(project):
    assert "valid" in hiar("config", "check", folder=project).stdout
    (project / "experiments" / "mine.yaml").write_text(
        "seeds: [3, 4]\nsample: {frames: 90}\ncompare: {init: [hiar], distill: [hiar, shared], walked: []}\n"
    )
    checked = hiar("config", "check", "mine", folder=project).stdout
    assert checked == "mine: valid; 2 seed(s), 3 students compared\n"
    assert "  frames: 90\n" in hiar("config", "show", "mine", folder=project).stdout
    (project / "experiments" / "mine.yaml").write_text("sample: {frames: 91}\n")
    assert mistake("config", "show", "mine", folder=project).startswith("experiments/mine.yaml: sample.frames = 91: ")


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
def test_invalid_parameters_are_named_by_every_command(project, old, new, line):
    spoil(project, old, new)
    for command in (["config", "check"], ["run"], ["stage", "codec", "--seed", 0]):
        assert mistake(*command, folder=project).startswith(f"params.yaml: {line}")
    assert {path.name for path in project.iterdir()} == {"params.yaml", "experiments"}


EXPERIMENTS = {  # an experiment's text, and how the error begins after the file's name
    # duplicates
    "seeds: [0, 0]": "seeds = [0, 0]: holds 0 twice, as items 1 and 2; remove one",
    "sample: {frames: 30}\nscore: {hop: 8.0}\nsample: {videos: 8}": "'sample': appears twice, in line 1 and in line 3",
    "variants:\n  hiar: null\n  'hiar': null": "'hiar': appears twice, in line 2 and in line 3",
    "compare: {init: [hiar, hiar]}": "compare.init = ['hiar', 'hiar']: holds 'hiar' twice, as items 1 and 2",
    "world: {colors: [red, blue, red]}": "world.colors = ['red', 'blue', 'red']: holds 'red' twice, as items 1 and 3",
    # values that YAML reads differently than people do
    "init: {training: {optimizer: {clip: 6e-3}}}": (
        "init.training.optimizer.clip = '6e-3': YAML reads it as text; write 6.0e-3"
    ),
    "init: {training: {optimizer: {clip: '.5'}}}": (
        "init.training.optimizer.clip = '.5': YAML reads it as text; write .5"
    ),
    "seeds: ['1.5']": "seeds.0 = '1.5': input should be a valid integer",
    "runtime: {precision: 1}": "runtime.precision = 1: input should be 'no'",
    "seeds: [1e3]": "seeds.0 = '1e3': YAML reads it as text; write 1000",
    "seeds: [010]": "line 1: 010: YAML reads it as 8; write it without leading zeros or colons",
    "sample: {frames: 1:30}": "line 1: 1:30: YAML reads it as 90; write",
    "runtime: {precision: no}": "runtime.precision = False: YAML reads on, off, yes and no as true or false",
    "seeds: 2026-99-99": "line 1: 2026-99-99: cannot be read (month must be in 1..12)",
    f"seeds: [{'9' * 5000}]": f"line 1: {'9' * 40}: cannot be read (Exceeds the limit",
    f"seeds: {'[' * 3000}": "a section: is nested too deeply",
    # values that would fail late in a run
    "teacher: {training: {optimizer: {adamw: {betas: [0.9, 1.0]}}}}": (
        "teacher.training.optimizer.adamw.betas.1 = 1.0: input should be less than 1"
    ),
    "runtime: {threads: 100000}": "runtime.threads = 100000: should be at most 1024; give the number of cores",
    "runtime: {offload: [real_score]}": "runtime.offload = ['real_score']: an offloaded real score is sharded; set "
    "runtime.processes (1 will do), or leave it out",
    "runtime: {offload: [critic]}": "runtime.offload.0 = 'critic': input should be 'real_score' or 'optimizers'",
    "variants: {hiar: {drawn: [1.0, 0.5]}}": "variants.hiar.drawn = [1.0, 0.5]: should be bounds of output",
    "variants: {self-forcing: {drawn: [0.0, 1.0]}}": "variants.self-forcing.drawn = [0.0, 1.0]: should be bounds",
    "variants: {hiar: {drawn: [0.0, 2.5]}}": "variants.hiar.drawn.1 = 2.5: input should be less than or equal to 2",
    "runtime: {variant_threads: 2000}": "runtime.variant_threads = 2000: should be at most 1024",
    "world: {frames_per_second: 1000000000000}": "world.frames_per_second = 1000000000000: input should be less than",
    "seeds: [9223372036854775808]": "seeds.0 = 9223372036854775808: input should be less than",
    "world: {radius: .nan}": "world.radius = nan: input should be a finite number",
    "world: {radius: 0.001}": "world.radius = 0.001: is too small to be found in 64 pixels; give at least 2",
    "world: {camera: 1000.0}": "world.camera = 1000.0: cannot exceed size = 64 pixels a frame",
    "model: {ffn: 1000000000}": "model.ffn = 1000000000: input should be less than or equal to 16384",
    "teacher: {training: {batch: 10000000000}}": "teacher.training.batch = 10000000000: input should be less than",
    f"variants: {{{'a' * 65}: null}}": f"variants.{'a' * 65}.[key] = '{'a' * 65}': string should have at most 64",
    f"score: {{segments: {'9' * 3000}}}": f"score.segments = {'9' * 100}...: input should be less than or equal",
}


def test_misleading_or_impossible_values_are_refused_at_once(project):
    """Checked as `hiar config check` does, but in this process: a command per case would take too long."""
    from hiar.workspace import experiment_params

    answers = {}
    for text, line in EXPERIMENTS.items():
        (project / "experiments" / "mine.yaml").write_text(text)
        try:
            experiment_params(project, "mine")
        except UserError as error:
            answers[text] = str(error).removeprefix(f"{project}/experiments/mine.yaml: ")[: len(line)]
    assert answers == EXPERIMENTS
    (project / "experiments" / "mine.yaml").write_text("seeds: [0, 0]")
    assert mistake("config", "check", "mine", folder=project).startswith("experiments/mine.yaml: seeds = [0, 0]: holds")
    assert mistake("run", "mine", folder=project).startswith("experiments/mine.yaml: seeds = [0, 0]: holds")
    (project / "experiments" / "mine.yaml").write_text("seeds: [1]")
    spoil(project, "seeds: [0]", "seeds: [0, 0]")  # named even though the experiment overrides it
    with pytest.raises(UserError, match=r"params\.yaml: seeds = \[0, 0\]: holds 0 twice"):
        experiment_params(project, "mine")


def test_yaml_merge_keys_may_be_overridden(project):
    (project / "experiments" / "mine.yaml").write_text(
        "variants:\n  one: &one {order: diagonal, context: output, level: 1.0, forward_kl: null}\n"
        "  two: &two {<<: *one, context: clean, level: null}\n  three: {<<: *two, order: step_first}\n"
    )
    hiar("config", "check", "mine", folder=project)


def test_running_out_of_memory_is_one_error_line(project):
    spoil(project, "size: 64", "size: 4096")
    spoil(project, "radius: 14.0", "radius: 800.0")
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("batch: 32", "batch: 100000000", 1))
    run = hiar("stage", "codec", "--seed", 0, folder=project, code=2, HIAR_TRACKING="off")
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: memory: not enough for ")


def test_an_error_in_an_experiment_names_its_file(project):
    (project / "experiments" / "mine.yaml").write_text("sample: {frames: 91}\n")
    assert mistake("run", "mine", folder=project).startswith("experiments/mine.yaml: sample.frames = 91: must be a")
    assert not (project / "runs").exists()


def test_an_unknown_experiment_is_answered_with_the_closest(project):
    line = mistake("run", "smok", folder=project)
    assert line == "experiment 'smok': there is no experiments/smok.yaml; did you mean 'smoke'?"


def test_outside_a_project_the_missing_params_yaml_is_named(tmp_path):
    assert mistake("run", folder=tmp_path).startswith("params.yaml: no such file")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["distil"], "stage 'distil': no such stage; known: codec, "),
        (["codec"], "--seed: is missing; stage codec needs it"),
        (["codec", "--seed", "x"], "Invalid value for '--seed'"),
        (["codec", "--seed", "0", "--variant", "hiar"], "--variant = hiar: stage codec has no such option"),
        (["distill", "--seed", "0", "--variant", "hier"], "variant 'hier': no such variant; did you mean 'hiar'?"),
        (["sample", "--seed", "0", "--model", "student", "--variant", "hiar"], "--model = student: is not a model"),
        (["sample", "--seed", "0", "--model", "init"], "--variant: is missing; stage sample needs it"),
        (
            ["sample", "--seed", "0", "--model", "teacher", "--variant", "hiar"],
            "--variant = hiar: stage sample has no",
        ),
    ],
)
def test_wrong_arguments_of_a_stage_are_named(project, arguments, line):
    assert mistake("stage", *arguments, folder=project).startswith(line)


def test_walk_and_restart_options_are_for_the_stages_that_use_them(project, monkeypatch):
    """Run in this process, because there are many cases."""
    from typer.testing import CliRunner

    from hiar.cli.app import app

    monkeypatch.chdir(project)
    monkeypatch.setenv("HIAR_TRACKING", "off")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")  # the command sets it; undone after the test

    def error_of(name, *options):
        return str(CliRunner().invoke(app, ["stage", name, "--seed", "0", *options]).exception)

    sample = ("sample", "--variant", "hiar", "--model")
    assert error_of(*sample, "walked") == "--walk: is missing; stage sample needs it"
    assert error_of(*sample, "distill", "--walk", "hiar").startswith("--walk = hiar: stage sample has no such option")
    assert error_of(*sample, "walked", "--walk", "hier").startswith(
        "variant 'hier': no such variant; did you mean 'hiar'"
    )
    assert error_of(*sample, "walked", "--walk", "shared").startswith(
        "artifacts/seed-0/distill/hiar/manifest.json: no such"
    )
    restart = ("--restart-from", "nowhere")
    for name, options in (("codec", ()), ("teacher", ()), ("init", ()), ("distill", ("--variant", "hiar"))):
        assert "has no such option" not in (line := error_of(name, *options, *restart))
        assert line.startswith(("--restart-from = nowhere: holds no training state", "artifacts/seed-0/"))
    for name, options in (("pairs", ()), ("sample", ("--model", "teacher"))):
        assert error_of(name, *options, *restart).startswith(
            f"--restart-from = nowhere: stage {name} has no such option"
        )


def test_the_processes_of_a_stage_have_its_threads(project, monkeypatch):
    """Stages of a variant have variant_threads instead, because variants run side by side."""
    from hiar import cli
    from hiar.io import ranks

    monkeypatch.chdir(project)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")  # the command sets it; undone after the test
    spoil(project, "\n  threads: 1\n  variant_threads: 1\n", "\n  threads: 3\n  variant_threads: 2\n  processes: 2\n")
    launches = []
    monkeypatch.setattr(ranks, "launch", lambda command, names, **options: launches.append((len(names), options)))
    for stage in (("pairs",), ("init",), ("distill", "--variant", "hiar")):
        monkeypatch.setattr(sys, "argv", ["hiar", "stage", *stage, "--seed", "0"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
    assert launches == [(2, {"teller": 0, "threads": threads}) for threads in (3, 3, 2)]


SAMPLE = ["sample", "--checkpoint", "x", "--frames", "30", "--prompt", "a disc", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seed", "1", "--seed=2"], "--seed: is given 2 times (--seed 1, then --seed=2); give it once"),
        (["--out", "other"], "--out: is given 2 times (--out out, then --out other); give it once"),
        (["--seed", "1" + "0" * 21], "Invalid value for '--seed'"),
        (["--stall-seconds", "inf"], "--stall-seconds = inf: should be 1 to 86400"),
        (["--stall-seconds", "nan"], "--stall-seconds = nan: should be 1 to 86400"),
        (["--stall-seconds", "-0"], "--stall-seconds = -0: should be 1 to 86400"),
    ],
)
def test_repeated_options_and_impossible_values_are_refused(project, arguments, line):
    assert mistake(*SAMPLE, *arguments, folder=project).startswith(line)
    assert not (project / "out").exists()


def test_seeds_and_lengths_beyond_64_bits_are_refused(project):
    huge = "1" + "0" * 21
    assert mistake("stage", "codec", "--seed", huge, folder=project).startswith("Invalid value for '--seed'")
    stream = ("stream", "--checkpoint", "x", "--prompt", "a disc", "--out", "v.mp4")
    assert mistake(*stream, "--seed", huge, folder=project).startswith("Invalid value for '--seed'")
    assert mistake(*stream, "--frames", huge, folder=project).startswith("Invalid value for '--frames'")


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
def test_unusable_prompt_files_are_refused(project, content, line):
    (project / "prompts.txt").write_bytes(content)
    assert sample(project, "--prompts", "prompts.txt") == line
    assert not (project / "out").exists()


def test_exactly_one_source_of_prompts_must_be_given(project):
    assert sample(project, "--prompts", "no.txt").startswith("no.txt: no such file")
    assert sample(project).startswith("--prompt, --prompts: give exactly one")
    assert sample(project, "--prompts", "no.txt", "--prompt", "a disc").startswith("--prompt, --prompts: give exactly")
    assert sample(project, "--prompt", " ").startswith("--prompt = ' ': is empty")


def test_unknown_or_unfitting_walk_options_are_refused(project):
    line = sample(project, "--prompt", "a disc", "--order", "diag")
    assert line == "--order = diag: is not one of block_first, step_first, diagonal; choose one of them"
    assert sample(project, "--prompt", "a disc", "--context", "dirty").startswith(
        "--context = dirty: is not one of finished, clean,"
    )
    assert sample(project, "--prompt", "a disc", "--resize").startswith("--resize: applies to --video or --image; ")
    assert sample(project, "--contxt", "clean").endswith("see `hiar sample --help`")


def test_a_workspace_that_cannot_be_written_is_named(project):
    (project / "runs").write_text("in the way")
    assert mistake("run", "smoke", folder=project).startswith("runs/smoke/.dvc/tmp: not a directory; ")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["run", "smoke"], "interrupted; the same command resumes from here\n"),
        (["vbench", "score", "videos", "--out", "scores"], "interrupted; the same command resumes from here\n"),
        (["vbench", "totals", "scores"], "interrupted\n"),
        (["config", "show"], "interrupted\n"),
        (["stream", "--checkpoint", "x", "--prompt", "a disc", "--out", "v.mp4"], "interrupted\n"),
        (["live", "--checkpoint", "x"], "interrupted\n"),
    ],
)
def test_ctrl_c_ends_a_command_with_a_line_and_the_code_of_shells(project, monkeypatch, capsys, command, line):
    from hiar import cli, workspace
    from hiar.cli import experiments, live, vbench, videos
    from hiar.vbench import leaderboard

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(project)
    monkeypatch.setattr(workspace, "experiment_params", interrupted)
    monkeypatch.setattr(videos, "walk_of", interrupted)
    for module in (experiments, live, vbench):
        monkeypatch.setattr(module, "alone", interrupted)
    monkeypatch.setattr(leaderboard, "read_results", interrupted)
    monkeypatch.setattr(sys, "argv", ["hiar", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err.lstrip() == line


@pytest.mark.parametrize("error", [RunFailed("it broke\ndown", 3), UserError("a \n mistake")])
def test_one_of_several_processes_writes_its_error_to_a_file_instead(project, tmp_path, monkeypatch, capsys, error):
    from hiar import cli, workspace

    def fails(*_):
        raise error

    monkeypatch.setattr(workspace, "experiment_params", fails)
    monkeypatch.setattr(sys, "argv", ["hiar", "config", "show"])
    for error_file in (None, tmp_path / "line"):
        if error_file is not None:
            monkeypatch.setenv("HIAR_ERROR_FILE", str(error_file))
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == getattr(error, "exit_code", 2)
        line = " ".join(str(error).split())
        assert capsys.readouterr().err == (f"error: {line}\n" if error_file is None else "")
        assert error_file is None or error_file.read_text() == line

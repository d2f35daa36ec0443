"""Unfinished training: resumed, set aside or taken up again, never lost; and parents that do not match."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import copy_artifacts, environment, hiar
from interrupted import interrupt
from sampled import small_params

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import write_manifest
from hiar.io.states import newest, read_index
from hiar.models.generator import load_generator
from hiar.parameters import load_params
from hiar.stages import codec, distill, init, pairs, plan
from hiar.stages.cards import trained_card
from hiar.stages.definition import code_hash
from hiar.stages.plan import load_sampler
from hiar.stages.restart import opened_state, take_up

ROOT = Path(__file__).parents[2]
STEPS, SEEN = 100, 5


def params_of(lr: float = 0.006, width: int = 8, checkpoint_minutes: float = 60.0) -> Params:
    params = small_params()
    training = params.codec.training
    adamw = training.optimizer.adamw.model_copy(update={"lr": lr})
    optimizer = training.optimizer.model_copy(update={"adamw": adamw})
    training = training.model_copy(update={"steps": STEPS, "batch": 2, "optimizer": optimizer})
    spec = params.codec.model_copy(update={"width": width, "depth": 1, "training": training})
    runtime = params.runtime.model_copy(update={"checkpoint_minutes": checkpoint_minutes})
    return params.model_copy(update={"codec": spec, "runtime": runtime})


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose codec training was interrupted; tests copy it."""
    workspace = tmp_path_factory.mktemp("interrupted")
    interrupt(lambda: codec.run(params_of(checkpoint_minutes=1e-9), workspace, 0), SEEN)
    return workspace


@pytest.fixture
def workspace(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "work"))


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def state(folder: Path) -> Path:
    place = newest(folder / ".training")
    assert place is not None
    return place


def done(folder: Path) -> int:
    return read_index(state(folder)).step


def manifest(workspace: Path) -> dict[str, object]:
    return json.loads((workspace / "artifacts" / "seed-0" / "codec" / "manifest.json").read_text())


def test_training_begun_with_other_settings_is_set_aside_and_can_be_resumed(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = workspace / "artifacts" / "seed-0"
    steps, other = done(place / "codec.partial"), params_of(lr=0.003)
    codec.run(other, workspace, 0)
    aside = place / "codec.aside-1.partial"
    messages = [line for line in capsys.readouterr().err.splitlines() if "codec.partial" in line]
    assert messages == [
        f"{place / 'codec.partial'}: was started with other settings (settings.codec.training.optimizer.adamw.lr); "
        f"it is kept as {aside}"
    ]
    assert done(aside) == steps
    assert "restarted_from" not in manifest(workspace)
    anew = rows(workspace / "curves" / "seed-0" / "codec.csv")
    assert len(anew) == STEPS

    codec.run(params_of(lr=0.004), workspace, 0, restart_from=aside)
    assert manifest(workspace)["restarted_from"]["folder"] == aside.name  # type: ignore[index]
    taken_up = rows(workspace / "curves" / "seed-0" / "codec.csv")
    assert len(taken_up) == STEPS
    assert taken_up[:steps] != anew[:steps]
    assert done(aside) == steps

    codec.run(params_of(), workspace, 0, restart_from=aside)  # with the original parameters: equals an undisturbed run
    assert rows(workspace / "curves" / "seed-0" / "codec.csv")[:steps] == taken_up[:steps]


def test_restarting_from_the_unfinished_folder_itself_sets_it_aside(workspace: Path) -> None:
    place = workspace / "artifacts" / "seed-0"
    steps = done(place / "codec.partial")
    codec.run(params_of(lr=0.003), workspace, 0, restart_from=place / "codec.partial")
    assert manifest(workspace)["restarted_from"]["folder"] == "codec.partial"  # type: ignore[index]
    assert done(place / "codec.aside-1.partial") == steps


def test_a_state_of_other_networks_is_refused(workspace: Path) -> None:
    partial = workspace / "artifacts" / "seed-0" / "codec.partial"
    with pytest.raises(UserError, match=r"state-\d+: belongs to other networks or optimisers .*train from scratch"):
        codec.run(params_of(width=16), workspace, 0, restart_from=partial)


def test_restarting_does_not_overwrite_an_existing_state(workspace: Path, tmp_path: Path) -> None:
    place = workspace / "artifacts" / "seed-0"
    other = Path(shutil.copytree(place / "codec.partial", tmp_path / "other.partial"))
    (state(other) / "state.json").write_bytes(b"another")
    before = (state(place / "codec.partial") / "state.json").read_bytes()
    with pytest.raises(UserError, match=r"has its own state to resume from; leave the option out"):
        codec.run(params_of(), workspace, 0, restart_from=other)
    assert (state(place / "codec.partial") / "state.json").read_bytes() == before


def test_states_of_folders_with_the_same_name_are_not_confused(workspace: Path, tmp_path: Path) -> None:
    partial, folder = workspace / "artifacts" / "seed-0" / "codec.partial", tmp_path / "taken up"
    for _ in range(2):
        with opened_state(partial) as found:
            assert found is not None
            take_up(found, partial, folder)
    other = Path(shutil.copytree(partial, tmp_path / "elsewhere" / partial.name))
    index = state(other) / "state.json"
    index.write_text(index.read_text() + "\n")
    with opened_state(other) as found, pytest.raises(UserError, match="has its own state to resume from"):
        assert found is not None
        take_up(found, other, folder)


def test_the_same_settings_resume_to_the_same_bytes(workspace: Path, tmp_path: Path) -> None:
    codec.run(params_of(), workspace, 0)
    log = json.loads((workspace / "logs" / "seed-0" / "codec.json").read_text())
    assert log["resumed"] is True
    codec.run(params_of(), tmp_path / "undisturbed", 0)
    log = json.loads((tmp_path / "undisturbed" / "logs" / "seed-0" / "codec.json").read_text())
    assert log["resumed"] is False
    weights = Path("artifacts", "seed-0", "codec", "codec.safetensors")
    assert (workspace / weights).read_bytes() == (tmp_path / "undisturbed" / weights).read_bytes()


def test_restarting_from_a_folder_without_a_state_is_refused_before_any_work(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in (".", "nothing"):
        run = hiar("stage", "codec", "--seed", 0, "--restart-from", name, folder=tmp_path, code=2, HIAR_TRACKING="off")
        assert run.stderr.startswith(f"error: --restart-from = {name}: holds no training state")
        assert run.stderr.count("\n") == 1
    run = hiar("stage", "pairs", "--seed", 0, "--restart-from", ".", folder=tmp_path, code=2)
    assert "stage pairs has no such option" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_edits_of_code_that_decides_nothing_keep_the_code_hash(tmp_path: Path) -> None:
    for name in ("hiar", "dvc.yaml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)

    def hashes() -> list[str]:
        script = (
            "from hiar.stages.definition import code_hash\n"
            "print(*(code_hash(stage, 'shapes') for stage in ('codec', 'distill', 'sample')))"
        )
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, cwd=tmp_path, env=environment() | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
        ).stdout.split()

    def edit(name: str) -> None:
        with (tmp_path / "hiar" / name).open("a") as file:
            file.write("\n# a comment\n")

    whole = hashes()
    assert whole == [code_hash(stage, "shapes") for stage in ("codec", "distill", "sample")]
    for name in ("report/page.py", "cli.py", "tracking/stage.py", "metrics/drift.py"):
        edit(name)
    assert hashes() == whole
    edit("training/distillation.py")
    assert [new == old for new, old in zip(hashes(), whole, strict=True)] == [True, False, True]


def changed(params: Params, section: str, **fields: object) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=fields)})


def test_parents_that_were_made_with_other_parameters_are_refused_field_by_field(smoke: Path, tmp_path: Path) -> None:
    params = load_params(smoke / "params.yaml")
    copy_artifacts(smoke / "artifacts" / "seed-0", tmp_path / "artifacts" / "seed-0")
    cases = [
        (lambda p: pairs.run(p, tmp_path, 0), changed(params, "teacher", guidance=2.0), "teacher", "teacher.guidance"),
        (lambda p: init.run(p, tmp_path, 0), changed(params, "pairs", guidance=2.0), "pairs", "pairs.guidance"),
        (lambda p: init.run(p, tmp_path, 0), changed(params, "codec", noise=0.25), "teacher", "codec.noise"),
        (
            lambda p: distill.run(p, tmp_path, 0, "hiar"),
            changed(params, "schedule", student_shift=2.0),
            "teacher",
            "schedule.student_shift",
        ),
        (
            lambda p: distill.run(p, tmp_path, 0, "hiar"),
            changed(params, "conventions", given="clean"),
            "init",
            "conventions.given",
        ),
    ]
    for run, other, parent, field in cases:
        with pytest.raises(UserError, match=rf"{parent}/manifest\.json: {field} = .*: params\.yaml says .*; run stage"):
            run(other)


def test_a_parent_that_was_made_from_another_one_is_refused(smoke: Path, tmp_path: Path) -> None:
    copy_artifacts(smoke / "artifacts" / "seed-0", tmp_path / "artifacts" / "seed-0")
    path = tmp_path / "artifacts" / "seed-0" / "init" / "manifest.json"
    content = json.loads(path.read_text())
    content["parents"]["teacher"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"init/manifest\.json: parents\.teacher = 0+: the teacher has changed since"):
        distill.run(load_params(smoke / "params.yaml"), tmp_path, 0, "hiar")


def test_a_students_card_says_what_it_was_trained_with(smoke: Path) -> None:
    params = load_params(smoke / "params.yaml")
    card = load_generator(smoke / "artifacts" / "seed-0" / "init").card
    other = changed(changed(params, "schedule", student_shift=2.0), "conventions", sinks="stay")
    other = changed(changed(other, "video", window=6), "runtime", precision="bf16")
    trained = trained_card(card, other, stage="distill", variant="hiar")
    assert (trained.schedule, trained.video, trained.conventions) == (other.schedule, other.video, other.conventions)
    assert (trained.precision, trained.stage, trained.variant) == ("bf16", "distill", "hiar")
    assert trained.world == card.world


def test_checkpoints_generate_in_the_precision_of_their_card(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = smoke / "artifacts" / "seed-0"
    for name in ("init", "teacher"):
        source = load_generator(places / name)
        assert load_sampler(places / name, torch.device("cpu")).denoiser.dtype == torch.float32
        source.card = source.card.model_copy(update={"precision": "bf16"})
        (tmp_path / name).mkdir()
        source.save(tmp_path / name)
        write_manifest(tmp_path / name, "checkpoint")
    for arithmetic in (True, False):
        monkeypatch.setattr(plan, "multiplies_bf16", lambda arithmetic=arithmetic: arithmetic)
        assert load_sampler(tmp_path / "init", torch.device("cpu")).denoiser.dtype == torch.bfloat16
        assert ("init computes in bf16, for which this processor has no" in capsys.readouterr().err) is not arithmetic
    teacher = load_sampler(tmp_path / "teacher", torch.device("cpu"))
    assert teacher.denoiser.dtype == torch.float32
    params = load_params(smoke / "params.yaml")
    captions = pairs.pair_captions(params, 0, range(2))
    rounded = pairs.solve(params, teacher, 0, range(2), captions)
    full = pairs.solve(params, load_generator(places / "teacher"), 0, range(2), captions)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, full)
    assert torch.equal(rounded[:, 0], full[:, 0])
    assert (rounded - full).norm() < 0.05 * full.norm()

"""Pairs: the same for any number of processes, and imported pairs in their place."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from students import save_attentive_student, smoke_params
from torch import Tensor

from hiar.config import Adopted, Params
from hiar.errors import UserError
from hiar.io.artifacts import read_manifest, write_manifest
from hiar.io.process_group import Ranks
from hiar.io.shards import read_shard, shard_path
from hiar.models.denoiser import guided_x0
from hiar.models.generator import Generator, load_generator
from hiar.noise import normals
from hiar.schedule import solver_sigmas, step_sigmas
from hiar.stages import pairs
from hiar.stages.common import Paths, Stage
from hiar.stages.foreign_pairs import import_pairs
from hiar.tracking.stage import Run
from hiar.worlds.interface import FIRST_CLIP


class Echo(Ranks):
    """Ranks whose other processes always have the same values as this one."""

    def gather(self, own: Tensor) -> Tensor:
        return torch.stack([own] * self.size)


def params_of(**changes: Any) -> Params:
    """Parameters whose teacher_shift and pairs.guidance differ from all other shifts and guidances."""
    spec = {"count": 11, "batch": 2, "shard": 3, "guidance": 2.5} | changes
    return smoke_params(pairs=spec, schedule={"teacher_shift": 2.0})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a teacher, and four shards of pairs that one process made."""
    folder = tmp_path_factory.mktemp("pairs")
    save_attentive_student(Paths(folder, 0).teacher)
    pairs.run(params_of(), folder, 0)
    return folder


def shards(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def make(whole: Path, folder: Path, rank: int) -> None:
    """Make the shards of one process of two."""
    work = Stage("pairs", params_of(), folder, Run(), Accelerator(cpu=True), {}, {}, {}, Echo(rank, 2))
    captions = pairs.pair_captions(work.params, 0, range(11))
    pairs._make_shards(work, load_generator(Paths(whole, 0).teacher), 0, captions)


def test_every_solver_step_sends_a_heartbeat(whole: Path) -> None:
    """So no process waits longer than one step, however many trajectories are solved together."""
    params, teacher, beats = params_of(), load_generator(Paths(whole, 0).teacher), []
    pairs.solve(params, teacher, 0, [0, 1], pairs.pair_captions(params, 0, range(2)), lambda: beats.append(1))
    assert len(beats) == params.pairs.solver_steps + 1


@torch.no_grad()
def test_a_trajectory_is_the_guided_flow_from_its_numbers_noise(whole: Path) -> None:
    """Euler steps on the teacher's levels, from the number's noise and caption; states at the student's are kept."""
    params, teacher = params_of(), load_generator(Paths(whole, 0).teacher)
    own, numbers = pairs.load_pairs(Paths(whole, 0).pairs), [0, 4, 10]
    assert own.captions == teacher.world.prompts(seed=0, first=FIRST_CLIP["pairs"], count=11)
    assert own.captions[4:6] == pairs.pair_captions(params, 0, range(4, 6))
    text = teacher.embed([own.captions[number] for number in numbers])
    nothing = teacher.embed_nothing().expand_as(text)
    assert torch.equal(own.sigmas, step_sigmas(4, params.schedule.student_shift))
    sigmas = solver_sigmas(own.sigmas, 2, params.schedule.teacher_shift)
    states = [normals("pairs noise", 0, numbers, (4, params.video.frames, 8, 8))]
    for now, then in pairwise(sigmas):
        x0 = guided_x0(teacher.denoiser, states[-1], now.expand(3), text, nothing, params.pairs.guidance)
        states.append(states[-1] + (then - now) * (states[-1] - x0) / now)
    torch.testing.assert_close(own.states[torch.tensor(numbers)], torch.stack(states[::2], 1), rtol=1e-4, atol=1e-4)
    figures = json.loads((whole / "metrics" / "seed-0" / "pairs.json").read_text())
    assert figures["count"] == 11
    assert figures["latent_std"] == pytest.approx(float(own.states[torch.arange(3)][:, -1].std()), rel=1e-4)


def test_two_processes_alternate_shards_and_leave_the_files_of_one(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = shards(Paths(whole, 0).pairs)
    assert len(expected) == 4
    make(whole, tmp_path, 1)
    assert list(shards(tmp_path)) == ["00001.safetensors", "00003.safetensors"]
    assert capsys.readouterr().err == ""
    make(whole, tmp_path, 0)
    assert shards(tmp_path) == expected
    assert "pairs: " in capsys.readouterr().err


def test_a_process_without_a_batch_left_takes_part_in_every_round(whole: Path, tmp_path: Path) -> None:
    """Otherwise the others would wait for it in vain."""
    rounds = []

    class OfBusier(Echo):
        def gather(self, own: Tensor) -> Tensor:
            others = super().gather(own)
            if own.dtype == torch.int64:  # numbers of rounds
                others[0] += 2
            return others

        def together(self, *given: Any) -> None:
            rounds.append(1)
            super().together(*given)

    work = Stage("pairs", params_of(), tmp_path, Run(), Accelerator(cpu=True), {}, {}, {}, OfBusier(1, 2))
    captions = pairs.pair_captions(work.params, 0, range(11))
    pairs._make_shards(work, load_generator(Paths(whole, 0).teacher), 0, captions)
    assert len(rounds) == 3 + 2
    assert list(shards(tmp_path)) == ["00001.safetensors", "00003.safetensors"]


def test_only_missing_or_damaged_shards_are_made_again(whole: Path, tmp_path: Path) -> None:
    expected = shards(Paths(whole, 0).pairs)
    for name, content in expected.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "00000.safetensors").unlink()
    (tmp_path / "00002.safetensors").write_bytes(expected["00002.safetensors"][:-1] + b"x")
    (tmp_path / "00003.safetensors").unlink()
    before = (tmp_path / "00001.safetensors").stat().st_mtime_ns
    make(whole, tmp_path, 0)
    assert shards(tmp_path).keys() == expected.keys() - {"00003.safetensors"}
    make(whole, tmp_path, 1)
    assert shards(tmp_path) == expected
    assert (tmp_path / "00001.safetensors").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def foreign(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our pairs in HiAR's format."""
    folder, own = tmp_path_factory.mktemp("foreign"), pairs.load_pairs(Paths(whole, 0).pairs)
    for number in range(11):
        states = own.states[torch.tensor([number])].transpose(2, 3).contiguous()
        torch.save({own.captions[number]: states}, folder / f"{number:05d}.pt")
    return folder


@pytest.fixture
def workspace(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(Paths(whole, 0).teacher, Paths(tmp_path, 0).teacher)
    return tmp_path


def test_imported_pairs_replace_our_own(whole: Path, foreign: Path, workspace: Path) -> None:
    source, schedule = workspace / "theirs", params_of().schedule
    import_pairs(foreign, source, schedule.student_shift, shard=4)
    pairs.run(params_of(source=source), workspace, 0)
    own, theirs = (pairs.load_pairs(Paths(place, 0).pairs) for place in (whole, workspace))
    everyone = torch.arange(11)
    assert torch.equal(theirs.states[everyone], own.states[everyone])
    assert torch.equal(theirs.sigmas, own.sigmas)
    assert theirs.captions == own.captions
    metrics = json.loads((workspace / "metrics" / "seed-0" / "pairs.json").read_text())
    assert metrics["count"] == 11
    first = own.states[everyone[:4]][:, -1]  # the clean ends of a shard
    assert metrics["latent_std"] == pytest.approx(first.std().item(), rel=1e-5)
    assert read_manifest(Paths(workspace, 0).pairs, "pairs")["source"] == "theirs"
    assert len(shards(Paths(workspace, 0).pairs)) == 3
    shutil.rmtree(Paths(workspace, 0).pairs)
    assert len(pairs.load_pairs(source).states) == 11  # the source stays in its place


def test_imported_pairs_may_have_levels_that_follow_no_shift(foreign: Path, workspace: Path) -> None:
    source, levels = workspace / "theirs", (1.0, 0.757, 0.522, 0.1)
    import_pairs(foreign, source, levels, shard=4)
    params = params_of(source=source)
    own = params.schedule.model_copy(update={"student_shift": None, "student_levels": levels})
    pairs.run(params.model_copy(update={"schedule": own}), workspace, 0)
    assert pairs.load_pairs(Paths(workspace, 0).pairs).sigmas.tolist() == pytest.approx([*levels, 0])


def test_of_imported_levels_the_students_are_selected(foreign: Path, workspace: Path) -> None:
    source, levels = workspace / "theirs", (1.0, 0.757, 0.522, 0.1)
    import_pairs(foreign, source, levels, shard=4)
    params = params_of(source=source)
    own = {"student_shift": None, "student_levels": (1.0, 0.522, 0.1), "student_steps": 3}
    params = params.model_copy(update={"schedule": params.schedule.model_copy(update=own)})
    pairs.run(params, workspace, 0)
    ours, theirs = (pairs.load_pairs(place) for place in (Paths(workspace, 0).pairs, source))
    everyone = torch.arange(11)
    assert torch.equal(ours.states[everyone], theirs.states[everyone][:, [0, 2, 3, 4]])
    assert ours.sigmas.tolist() == pytest.approx([1, 0.522, 0.1, 0])
    assert ours.captions == theirs.captions
    for index in range(3):
        with safe_open(shard_path(Paths(workspace, 0).pairs, index), "pt") as shard:
            (header,) = shard.metadata().values()
            assert json.loads(header)["metadata"] == {"first": str(4 * index)}
    assert len(shards(Paths(workspace, 0).pairs)) == len(shards(source)) == 3


def test_clips_are_imported_with_their_pairs(foreign: Path, workspace: Path) -> None:
    """With all of their levels, and with some of them."""
    source, levels, everyone = workspace / "theirs", (1.0, 0.757, 0.522), torch.arange(11)
    import_pairs(foreign, source, levels, shard=4, clip_last=True)
    params = params_of(source=source)
    for own, read in ((levels, [0, 1, 2, 3]), ((1.0, 0.522), [0, 2, 3])):
        changes = {"student_shift": None, "student_levels": own, "student_steps": len(own)}
        pairs.run(params.model_copy(update={"schedule": params.schedule.model_copy(update=changes)}), workspace, 0)
        ours, theirs = (pairs.load_pairs(place) for place in (Paths(workspace, 0).pairs, source))
        assert ours.clips is not None
        assert theirs.clips is not None
        assert torch.equal(ours.states[everyone], theirs.states[everyone][:, read])
        assert torch.equal(ours.clips[everyone], theirs.clips[everyone])


def test_pairs_for_the_regulariser_alone_may_have_other_levels(foreign: Path, workspace: Path) -> None:
    """HiAR's pairs have shift 8, its student shift 5: their levels share only the start of the first step.

    Whatever reads more of their levels refuses them, even if they were accepted for something that reads fewer.
    """
    source = workspace / "theirs"
    import_pairs(foreign, source, 8.0, shard=4)
    params = params_of(source=source)
    variants = {"hiar": params.variant("hiar"), "causvid": params.variant("causvid")}
    kl = variants["hiar"].forward_kl
    assert kl is not None
    variants["deep"] = variants["hiar"].model_copy(update={"forward_kl": kl.model_copy(update={"steps": 2})})
    adopted = Adopted.model_construct(kind="adopted", source=source, validation=None)

    def of(init: object, *distilled: str) -> Params:
        compared = params.compare.model_copy(update={"distill": [*distilled]})
        return params.model_copy(update={"init": init, "compare": compared, "variants": variants})

    for distilled in (("deep", "hiar"), ("hiar", "deep"), ("deep", "causvid")):
        assert pairs.levels_needed(of(adopted, *distilled), every=False) == 2
    for other in (of(params.init, "hiar"), of(adopted, "deep")):
        with pytest.raises(UserError, match=r"pairs.source = .*: its levels are 1, .*, the student's 1, "):
            pairs.run(other, workspace, 0)
    pairs.run(of(adopted, "hiar", "causvid"), workspace, 0)  # CausVid uses only the clean ends
    ours, theirs = (pairs.load_pairs(place) for place in (Paths(workspace, 0).pairs, source))
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.states[torch.arange(11)], theirs.states[torch.arange(11)])
    for changed, every in ((of(adopted, "deep"), False), (of(adopted, "hiar"), True)):
        with pytest.raises(UserError, match=r"^made: its levels are 1, "):
            pairs.require_levels(changed, ours.sigmas, pairs.levels_needed(changed, every), "made")


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_an_interrupted_stage_with_imported_pairs_starts_again(
    links: bool, foreign: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its files are hard links to the source, which must not be overwritten; on another disk, copies."""
    source, made = workspace / "theirs", Paths(workspace, 0).pairs
    import_pairs(foreign, source, params_of().schedule.student_shift, shard=4)
    expected = shards(source)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairs, "_write_figures", interrupted)
        pairs.run(params_of(source=source), workspace, 0)
    assert len(shards(made.with_name("pairs.partial"))) == 3

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    pairs.run(params_of(source=source), workspace, 0)
    assert shards(made) == shards(source) == expected
    for name in expected:
        assert not (made / name).is_symlink()
        assert (made / name).samefile(source / name) == links


def test_a_trajectory_that_is_not_finite_is_named_and_whole_shards_are_kept(
    whole: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    solve = pairs.solve

    def spoiled(params: Params, teacher: Generator, seed: int, numbers: range, *rest: Any) -> Tensor:
        states = solve(params, teacher, seed, numbers, *rest)
        if 4 in numbers:
            states[numbers.index(4), 2, 0, 0, 0, 0] = torch.nan
        return states

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "solve", spoiled)
        with pytest.raises(
            UserError, match=r"^pairs: trajectory 4: its state after 2 steps is not finite; lower pairs"
        ):
            pairs.run(params_of(), workspace, 0)
    assert list(shards(Paths(workspace, 0).pairs.with_name("pairs.partial"))) == ["00000.safetensors"]
    capsys.readouterr()
    pairs.run(params_of(), workspace, 0)
    assert shards(Paths(workspace, 0).pairs) == shards(Paths(whole, 0).pairs)
    assert "pairs: 11/11 in " in capsys.readouterr().err


def test_pairs_are_not_begun_without_enough_disk_space(
    whole: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted run has already written needs no more space."""
    shard = Paths(whole, 0).pairs / "00000.safetensors"
    needed = 11 * read_shard(shard)["states"][0].nbytes
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"pairs\.partial: needs .* GB, .* GB are free; free some space"):
        pairs.run(params_of(), workspace, 0)
    partial = Paths(workspace, 0).pairs.with_name("pairs.partial")
    assert not partial.exists()

    def interrupted(*_: object) -> None:
        shutil.copy(shard, partial)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairs, "_make_shards", interrupted)
        pairs.run(params_of(), workspace, 0)
    pairs.run(params_of(), workspace, 0)
    assert shards(Paths(workspace, 0).pairs) == shards(Paths(whole, 0).pairs)


def test_pairs_that_do_not_match_their_count_are_refused(whole: Path, tmp_path: Path) -> None:
    manifest = read_manifest(Paths(whole, 0).pairs, "pairs")
    facts = {name: manifest[name] for name in ("count", "shard", "sigmas")}
    shutil.copytree(Paths(whole, 0).pairs, tmp_path / "pairs")
    captions = tmp_path / "pairs" / pairs.CAPTIONS
    lines = captions.read_text().splitlines(keepends=True)
    for count, kept, found in ((10, 10, "11 trajectories"), (11, 10, "10 captions"), (10, 11, "11 captions")):
        captions.write_text("".join(lines[:kept]))
        write_manifest(tmp_path / "pairs", "pairs", **facts | {"count": count})
        with pytest.raises(UserError, match=rf"pairs: holds {found}, not {count}; run the pairs stage again"):
            pairs.load_pairs(tmp_path / "pairs")


def test_imported_pairs_that_do_not_fit_are_named_field_by_field(foreign: Path, workspace: Path) -> None:
    source = workspace / "theirs"
    import_pairs(foreign, source, 8.0, shard=4)
    shift = params_of().schedule.student_shift
    for changes, line in {
        (("schedule", "student_shift", 8.0), ("pairs", "count", 10)): "pairs.count = 10: .*theirs holds 11; give that",
        (("schedule", "student_shift", 8.0), ("video", "frames", 6)): r"pairs.source = .*trajectories \(\d, .*\), the ",
        (
            ("schedule", "student_shift", shift),
        ): r"pairs.source = .*: its levels are 1, .*, the student's 1, .*; change",
        (
            ("schedule", "student_shift", 8.001),
        ): r"pairs.source = .*: its levels are .*, 0\.888889, .*, the student's .*, 0\.888901, .*; change",
    }.items():
        params = params_of(source=source)
        for section, field, value in changes:
            part = getattr(params, section).model_copy(update={field: value})
            params = params.model_copy(update={section: part})
        with pytest.raises(UserError, match=f"^params.yaml: {line}"):
            pairs.run(params, workspace, 0)
        assert not Paths(workspace, 0).pairs.exists()
    with pytest.raises(UserError, match=r"manifest\.json: SHA-256 = .*: params\.yaml says pairs\.source_sha256 = 0000"):
        pairs.run(params_of(source=source, source_sha256="0" * 64), workspace, 0)

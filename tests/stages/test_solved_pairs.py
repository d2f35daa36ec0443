"""Pairs that are not stored: the trajectories equal stored ones, and so does a training on them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from students import save_attentive_student, save_student, smoke_params
from torch import Tensor

from hiar.config import Params
from hiar.errors import UserError
from hiar.memory.disk import disk
from hiar.memory.forecast import forecast
from hiar.memory.networks import open_models
from hiar.memory.steps import Sizes
from hiar.parameters import load_params, parse_params
from hiar.stages import distill, init, pairs
from hiar.stages.common import Paths
from hiar.stages.solved_pairs import SolvedRows, open_pairs

CPU = torch.device("cpu")
MADE = Path("artifacts", "seed-0")


def not_stored(params: Params) -> Params:
    tree = params.model_dump(mode="json")
    tree["pairs"]["stored"] = False
    return type(params).model_validate(tree)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two workspaces with one teacher: one with eleven stored pairs, one with none."""
    stored, solved = (tmp_path_factory.mktemp(name) for name in ("stored", "solved"))
    params = smoke_params(pairs={"count": 11, "batch": 2, "shard": 3})
    for folder, one in ((stored, params), (solved, not_stored(params))):
        save_attentive_student(Paths(folder, 0).teacher)
        pairs.run(one, folder, 0)
    return stored, solved


def test_solved_pairs_equal_stored_ones(both: tuple[Path, Path]) -> None:
    stored, solved = both
    params = smoke_params(pairs={"count": 11, "batch": 2, "shard": 3})
    own, theirs = open_pairs(params, stored, 0, CPU), open_pairs(not_stored(params), solved, 0, CPU)
    assert (len(theirs.states), theirs.captions) == (11, own.captions)
    assert torch.equal(theirs.sigmas, own.sigmas)
    rows = torch.tensor([10, 0, 7, 0, 3])
    torch.testing.assert_close(theirs.states[rows], own.states[rows], rtol=0, atol=1e-5)
    assert theirs.states[rows].std() > 0.1
    assert list(Paths(solved, 0).pairs.glob("*.safetensors")) == []
    stats = [json.loads((folder / "metrics" / "seed-0" / "pairs.json").read_text()) for folder in both]
    assert stats[1]["count"] == 11
    assert stats[1]["latent_std"] == pytest.approx(stats[0]["latent_std"], rel=0.2)  # measured on other trajectories


@pytest.mark.parametrize(("kept_in", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_states_may_be_stored_in_half_precision(
    kept_in: str, dtype: torch.dtype, both: tuple[Path, Path], tmp_path: Path
) -> None:
    """Rounded once, after solving; states that are solved when they are drawn are rounded in the same way."""
    full, half = (
        smoke_params(pairs={"count": 11, "batch": 2, "shard": 3, "kept_in": kept}) for kept in (None, kept_in)
    )
    shutil.copytree(Paths(both[0], 0).teacher, Paths(tmp_path, 0).teacher)
    pairs.run(half, tmp_path, 0)
    assert pairs.load_shard(Paths(tmp_path, 0).pairs, 0).dtype == dtype
    everyone = torch.arange(11)
    exact = open_pairs(full, both[0], 0, CPU).states[everyone]
    kept = open_pairs(half, tmp_path, 0, CPU).states[everyone]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, exact.to(dtype).float())
    drawn = open_pairs(not_stored(half), both[1], 0, CPU).states[everyone]
    assert torch.equal(drawn, drawn.to(dtype).float())
    torch.testing.assert_close(drawn, kept, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    assert 2 * disk(open_models(half))["pairs"] == disk(open_models(full))["pairs"]


def test_solved_rows_read_like_a_tensor_and_keep_the_last_request() -> None:
    states = torch.randn(9, 5, 2, 6, 3, 3)
    solved: list[list[int]] = []

    def solve(numbers: Sequence[int]) -> Tensor:
        solved.append(list(numbers))
        return states[list(numbers)]

    rows = SolvedRows(9, solve)
    chosen = torch.tensor([4, 1, 4, 8])
    assert torch.equal(rows[chosen, -1], states[chosen, -1])
    assert torch.equal(pairs.at_levels(rows, chosen, torch.tensor([[0, 4]] * 4), 3)[:, :, :3], states[chosen, 0, :, :3])
    assert torch.equal(rows[chosen, :2], states[chosen, :2])
    assert torch.equal(rows[chosen], states[chosen])
    assert solved == [[4, 1, 8]]
    assert torch.equal(rows[torch.tensor([8, 2])], states[[8, 2]])
    assert solved[1:] == [[2]]  # rows still in memory are not solved again
    assert torch.equal(rows[chosen], states[chosen])
    assert solved[2:] == [[4, 1]]  # and rows that were not in the last request are dropped


def test_training_on_solved_pairs_equals_training_on_stored_ones(smoke: Path, tmp_path: Path) -> None:
    """Up to rounding: init by regression, and HiAR with its regulariser."""
    params = load_params(smoke / "params.yaml")
    shutil.copytree(smoke / MADE / "teacher", tmp_path / MADE / "teacher")
    solved = not_stored(params)
    pairs.run(solved, tmp_path, 0)
    init.run(solved, tmp_path, 0)
    distill.run(solved, tmp_path, 0, "hiar")
    for stage, losses in (("init", ["loss"]), ("distill/hiar", ["forward_kl", "critic"])):
        own, theirs = (curve(folder, stage) for folder in (smoke, tmp_path))
        for column in losses:
            expected = [float(row[column]) for row in own if row[column]]
            assert len(expected) > 1
            assert [float(row[column]) for row in theirs if row[column]] == pytest.approx(expected, rel=1e-3), stage


def curve(workspace: Path, stage: str) -> list[dict[str, str]]:
    with (workspace / "curves" / "seed-0" / f"{stage}.csv").open() as file:
        return list(csv.DictReader(file))


def test_what_needs_stored_pairs_is_refused_without_them(both: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs: stores no trajectories; write pairs\.stored: true and run the pairs"):
        pairs.load_pairs(Paths(both[1], 0).pairs)
    tree = smoke_params().model_dump(mode="json")
    tree["pairs"] |= {"stored": False, "source": "models/pairs"}
    with pytest.raises(UserError, match=r"pairs\.stored = False.*imported pairs are stored; write true"):
        parse_params(tree, Path("params.yaml"))
    tree["pairs"] |= {"stored": True, "kept_in": "bf16"}
    with pytest.raises(UserError, match=r"pairs\.kept_in = 'bf16'.*imported pairs keep their type; write null"):
        parse_params(tree, Path("params.yaml"))


def test_a_teacher_without_finite_trajectories_is_refused_before_training(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    """And a trajectory that is not finite is named when it is drawn."""
    save_student(Paths(tmp_path, 0).teacher)
    params = not_stored(smoke_params(pairs={"count": 11, "batch": 2, "shard": 3}))
    spoiled = params.model_copy(update={"pairs": params.pairs.model_copy(update={"guidance": 1e30})})
    with pytest.raises(UserError, match=r"pairs: trajectory 0: its state after 1 steps is not finite"):
        pairs.run(spoiled, tmp_path, 0)
    with pytest.raises(UserError, match=r"pairs: trajectory 7: its state after 1 steps is not finite"):
        open_pairs(spoiled, both[1], 0, CPU).states[torch.tensor([7, 2])]


def test_a_plan_counts_the_teacher_of_solved_pairs_and_no_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    def imagine(_: object, sizes: Sizes, trained: object, frozen: object = ()) -> dict[str, int]:
        """Steps that are not simulated: of the solver, and of a training."""
        return {"backward": 10**6} if trained else {"pairs": 10**5 * sizes.batch}

    monkeypatch.setattr("hiar.memory.forecast.imagine", imagine)
    params = smoke_params(pairs={"batch": 1})
    for stage in ("init", "distill"):
        plans = [
            forecast(open_models(one), stage, params.variant("hiar"), 2, gpus=2) for one in (params, not_stored(params))
        ]
        more = {(one.role, one.what): one.bytes for one in plans[1].entries}
        fewer = {(one.role, one.what): one.bytes for one in plans[0].entries}
        teacher = more.pop(("teacher of the pairs", "parameters"))
        assert more == fewer
    assert teacher == pytest.approx(2 * fewer["real score", "parameters"], rel=0.01)  # only the real score is sharded
    plan = forecast(open_models(not_stored(params)), "distill", params.variant("self-forcing"), 2)
    assert "teacher of the pairs" not in {one.role for one in plan.entries}  # self-forcing draws no pairs
    many = open_models(not_stored(smoke_params(pairs={"batch": 64})))
    solving = forecast(many, "pairs", params.variant("hiar"), 64).entries[-1]
    for stage in ("init", "distill"):  # with so many at a time, solving is the peak
        entries = forecast(many, stage, params.variant("hiar"), 2).entries
        *_, fullest = entries
        assert fullest.what == "pairs"
        rings = sum(one.bytes for one in entries if one.role == "rings")
        assert fullest.bytes + rings == solving.bytes
    assert disk(open_models(not_stored(params)))["pairs"] == 0 < disk(open_models(params))["pairs"]

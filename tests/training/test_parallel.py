"""Trainings over several processes: their number changes nothing but rounding, nor does the size of micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from shared import Case, make, run_ranks, runtime, train_case
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from hiar.errors import UserError
from hiar.io.process_group import ALONE, Ranks, joined
from hiar.io.shards import STATE, read_shard, write_shard
from hiar.training.checkpoint import load_state, save_state
from hiar.training.muon import ShardedMuon
from hiar.training.parallel import accumulate, deal

FEW = [
    Case("init", steps=6),
    Case("init", wan=True, muon=True, steps=4),
    Case("distill", wan=True, replay=2, steps=2),
    Case("distill", muon=True, steps=1),
]
ALL = [Case(name, wan, steps=20) for name in ("init", "distill") for wan in (False, True)]
# Muon's iteration is in half precision, where the last bit of a gradient becomes 2^-8 of an update of up to 0.01: over
# 20 of them, weights may be half an update apart. Between one process and two there is no last bit.
MUON = 5e-3

Weights = dict[str, Tensor]


def alone(case: Case, processes: int | None) -> Weights:
    """As one process trains it, with whole networks (None) or sharded ones (1)."""
    with joined(runtime(processes)) as ranks:
        return train_case(case, ranks)


def away(one: Weights, other: Weights) -> float:
    """The largest difference, of metrics relative to the largest."""
    assert one.keys() == other.keys()
    scale = {"curve": max(1.0, float(one["curve"].abs().max()))}
    return max(float((one[key] - other[key]).abs().max()) / scale.get(key, 1.0) for key in one)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    """The cases as two processes train them, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(2, folder, FEW)
    return [load_file(folder / f"{number}.safetensors") for number in range(len(FEW))]


@pytest.mark.parametrize("number", range(len(FEW)))
def test_two_processes_are_one_that_takes_two_micro_batches(number: int, of_two: list[Weights]) -> None:
    assert same(alone(FEW[number], 1), of_two[number])


@pytest.mark.parametrize("case", [FEW[0], FEW[2]])
def test_sharded_networks_learn_what_whole_ones_learn_whatever_the_micro_batches(case: Case) -> None:
    whole = alone(case, None)
    assert away(whole, alone(case, 1)) < 1e-6
    assert away(whole, alone(case._replace(micro_batch=None), None)) < 1e-6


def test_muon_of_sharded_matrices_is_torchs() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=random)
    with joined(runtime(1)) as ranks:
        assert ranks.mesh is not None
        whole = nn.Parameter(weight.clone())
        sharded = nn.Parameter(distribute_tensor(weight, ranks.mesh, [Shard(0)]))
        expected = torch.optim.Muon([whole], lr=0.1, weight_decay=0.2)
        muon = ShardedMuon([sharded], lr=0.1, weight_decay=0.2)
        for _ in range(3):
            whole.grad = torch.randn(6, 4, generator=random)
            sharded.grad = distribute_tensor(whole.grad, ranks.mesh, [Shard(0)])
            expected.step()
            muon.step()
            assert torch.equal(sharded.detach().full_tensor(), whole)
        assert not torch.equal(whole, weight)


@pytest.mark.long
@pytest.mark.parametrize("case", [*ALL, Case("init", muon=True)], ids=str)
def test_twenty_steps(case: Case, tmp_path: Path) -> None:
    """Bitwise of one and two processes; 1e-6 of whole networks; 1e-5 of four processes, with AdamW."""
    bound = (1e-6, 1e-5) if not case.muon else (MUON, MUON)
    one, trained = alone(case, 1), {}
    for size in (2, 4):
        (tmp_path / str(size)).mkdir()
        run_ranks(size, tmp_path / str(size), [case._replace(micro_batch=4 // size)])
        trained[size] = load_file(tmp_path / str(size) / "0.safetensors")
    assert same(one, trained[2])
    assert away(one, alone(case, None)) < bound[0]
    assert away(one, trained[4]) < bound[1]


def test_a_state_goes_on_sharded_and_whole(tmp_path: Path) -> None:
    """What a sharded run has saved continues to the same weights in either; a whole run's state in a sharded one."""
    case, ended = Case("init", muon=True, steps=4), {}
    for first in (1, None):
        with joined(runtime(first)) as ranks:
            roles, step, _ = make(case, ranks)
            for number in range(2):
                step(number)
            folder = tmp_path / str(first)
            save_state(folder, 2, roles, {}, [])
        for then in (1, None):
            with joined(runtime(then)) as ranks:
                roles, step, _ = make(case, ranks)
                assert load_state(folder, roles, {}) == (2, [])
                saved = read_shard(folder / STATE)
                again = tmp_path / "again"
                save_state(again, 2, roles, {}, [])
                assert same(saved, read_shard(again / STATE))
                for number in range(2, 4):
                    step(number)
                save_state(again, 4, roles, {}, [])
                ended[first, then] = read_shard(again / STATE)
    assert away_of_states(ended[1, 1], ended[1, None]) < MUON
    assert away_of_states(ended[1, 1], ended[None, 1]) < MUON


def away_of_states(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one if "/module/" in key)


@pytest.mark.parametrize("change", ["shape", "surplus", "place"])
def test_a_state_of_other_optimisers_is_named(change: str, tmp_path: Path) -> None:
    roles, step, _ = make(Case("init", steps=2), ALONE)
    step(0)
    save_state(tmp_path, 1, roles, {}, [])
    tensors = read_shard(tmp_path / STATE)
    name = "student/optimizer/0/0/exp_avg"
    tensors |= {
        "shape": {name: tensors[name][:1, :1].clone()},
        "surplus": {"critic/module/weight": torch.ones(2)},
        "place": {"student/optimizer/0/999/exp_avg": tensors[name].clone()},
    }[change]
    write_shard(tmp_path / STATE, tensors, {})
    with pytest.raises(UserError, match=r"is of other networks or optimisers \(.*\); train anew"):
        load_state(tmp_path, roles, {})


def test_micro_batches_are_dealt_in_turn_and_all_of_them() -> None:
    assert deal(8, 2, Ranks(1, 2)) == [range(2, 4), range(6, 8)]
    assert deal(8, None, Ranks(1, 2)) == [range(4, 8)]
    assert deal(8, None, ALONE) == [range(8)]
    for batch, micro_batch, size in ((8, 4, 3), (8, None, 3), (2, None, 4), (8, 3, 1)):
        with pytest.raises(
            UserError, match=f"a batch of {batch} .*cannot be dealt to {size} processes in equal shares"
        ):
            deal(batch, micro_batch, Ranks(0, size))


def test_gradients_and_metrics_are_means_over_the_micro_batches() -> None:
    network, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]])

    def loss_of(part: range) -> tuple[Tensor, dict[str, float]]:
        loss = network(x[part.start : part.stop]).mean()
        return loss, {"loss": loss.item(), "first": float(part.start)}

    metrics = accumulate(network, deal(4, 1, ALONE), loss_of, ALONE, Accelerator(cpu=True))
    torch.testing.assert_close(network.weight.grad, x.mean(0, keepdim=True))
    assert metrics["first"] == 1.5
    assert metrics["loss"] == pytest.approx(network(x).mean().item())

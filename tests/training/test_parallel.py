"""Trainings over several processes: neither their number nor the size of micro-batches changes more than rounding."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from shared import STATES, TEXT, Case, make, run_ranks, runtime, save_state, train_case
from tiny import tiny_denoiser
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from hiar.errors import UserError
from hiar.io.process_group import ALONE, Ranks, check_sizes, joined
from hiar.io.states import Index, StoredState, layout_of, newest, publish, read_index, temporary_state, write_part
from hiar.models.attention import Bidirectional
from hiar.training.checkpoint import load_state
from hiar.training.muon import Muon, ShardedMuon
from hiar.training.parallel import accumulate, deal, local, read, shard
from hiar.training.role import Role

FEW = [
    Case("init", steps=6),
    Case("init", wan=True, muon=True, steps=4),
    Case("distill", wan=True, replay=2, steps=2),
    Case("distill", muon=True, steps=1),
    Case("distill", wan=True, steps=2, half=True),
    Case("distill", wan=True, steps=2, checkpointing=True),
]
STATE = Case("distill", muon=True, replay=2, steps=5)
ALL = [Case(name, wan, steps=20) for name in ("init", "distill") for wan in (False, True)]
# Muon iterates in half precision, so the last bit of a gradient becomes 2^-8 of an update of up to 0.01: after 20 of
# them, weights may differ by half an update. Between one process and two not even the last bit differs.
MUON = 5e-3

Weights = dict[str, Tensor]


def alone(case: Case, processes: int | None) -> Weights:
    """Train a case in one process, with whole networks (None) or sharded ones (1)."""
    with joined(runtime(processes)) as ranks:
        return train_case(case, ranks)


def largest_difference(one: Weights, other: Weights) -> float:
    """The largest difference; that of metrics is relative to the largest metric, if above 1."""
    assert one.keys() == other.keys()
    scale = {"curve": max(1.0, float(one["curve"].abs().max()))}
    return max(float((one[key] - other[key]).abs().max()) / scale.get(key, 1.0) for key in one)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored_tensors(folder: Path) -> Weights:
    """All tensors of the newest state, unsharded."""
    place = newest(folder)
    assert place is not None
    index = read_index(place)
    state = StoredState(place, index)
    return {name: state.read(name) for name in index.tensors}


def save_trained_state(case: Case, steps: int, folder: Path) -> None:
    """Train in one process with sharded networks, and save a state in ``folder``."""
    with joined(runtime(1)) as ranks:
        roles, step, memory = make(case, ranks)
        curve = [{"step": number, **step(number)} for number in range(steps)]
        save_state(folder, steps, roles, memory, curve)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes, launched once, leave results of the cases and states."""
    folder = tmp_path_factory.mktemp("two")
    save_trained_state(STATE, 1, folder / "of one")
    run_ranks(2, folder, FEW, STATE)
    return folder


@pytest.fixture(scope="module")
def results_of_two(two_processes: Path) -> list[Weights]:
    """The results of the cases trained by two processes."""
    return [load_file(two_processes / f"{number}.safetensors") for number in range(len(FEW))]


@pytest.mark.parametrize("number", range(len(FEW)))
def test_two_processes_equal_one_with_two_micro_batches(number: int, results_of_two: list[Weights]) -> None:
    assert same(alone(FEW[number], 1), results_of_two[number])


@pytest.mark.parametrize("case", [FEW[0], FEW[2], FEW[5]])
def test_sharded_and_whole_networks_learn_the_same_with_any_micro_batches(case: Case) -> None:
    whole = alone(case, None)
    assert largest_difference(whole, alone(case, 1)) < 1e-6
    assert largest_difference(whole, alone(case._replace(micro_batch=None), None)) < 1e-6


def test_in_bf16_sharded_and_whole_networks_differ_by_less_than_its_rounding() -> None:
    case = Case("init", wan=True, steps=3)
    whole, half = alone(case._replace(half=True), None), alone(case._replace(half=True), 1)
    rounding = largest_difference(alone(case, None), whole)
    assert 0 < largest_difference(whole, half) < rounding


@pytest.mark.parametrize("half", [False, True])
def test_layers_are_gathered_in_their_compute_dtype(half: bool) -> None:
    """Modules that Wan keeps in full precision stay in it, and so does everything outside the layers."""
    with joined(runtime(1, half)) as ranks:
        network, seen = tiny_denoiser(), dict[str, torch.dtype]()
        shard(network, ranks)
        for path, module in network.named_modules():

            def look(module: nn.Module, _: Any, path: str = path) -> None:
                seen.update({f"{path}.{name}": p.dtype for name, p in module.named_parameters(recurse=False)})

            module.register_forward_pre_hook(look)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            network(STATES[:, -1], torch.ones(6), TEXT, Bidirectional())
        kept = set(network.transformer._keep_in_fp32_modules)
        assert seen.keys() == {name for name, _ in network.named_parameters()}
        in_half = {name for name, dtype in seen.items() if dtype is torch.bfloat16}
        layers = {name for name in seen if ".blocks." in name and not kept & set(name.split("."))}
        assert in_half == (layers if half else set())


@pytest.mark.parametrize("case", [FEW[0], FEW[2], FEW[3], FEW[4]])
def test_offloading_changes_no_bit(case: Case) -> None:
    assert same(alone(case, 1), alone(case._replace(offload=True), 1))


def test_every_unit_of_an_offloaded_network_is_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its units is sharded with torch's CPUOffloadPolicy, and those of other networks are not."""
    policies = []

    def recorded(*arguments: Any, offload_policy: OffloadPolicy, **options: Any) -> Any:
        policies.append(type(offload_policy))
        return fully_shard(*arguments, offload_policy=offload_policy, **options)

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", recorded)
    with joined(runtime(1)) as ranks:
        for offload in (False, True):
            shard(tiny_denoiser(), ranks, offload=offload)
    half = len(policies) // 2
    assert policies == [OffloadPolicy] * half + [CPUOffloadPolicy] * half
    assert half == 1 + len(tiny_denoiser().transformer.blocks)


@pytest.mark.parametrize("processes", [None, 1])
def test_offloaded_optimiser_states_are_on_the_host_between_updates(
    processes: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The meta device stands for the host: what has been moved there cannot be moved back."""
    case, nowhere = FEW[3]._replace(offload=True), torch.device("meta")

    def places(role: Role) -> set[str]:
        states = [state for one in role.optimizers for state in one.state.values()]
        return {local(value).device.type for state in states for value in state.values() if value.ndim}

    with joined(runtime(processes)) as ranks:
        roles, step, memory = make(case, ranks)
        step(0)
        step(1)
        assert places(roles["critic"]) == {"cpu"}
        save_state(tmp_path, 2, roles, memory, [])
        monkeypatch.setattr("hiar.training.role.HOST", nowhere)
        monkeypatch.setattr("hiar.training.checkpoint.HOST", nowhere)
        with pytest.raises(NotImplementedError, match="meta tensor"):  # at the critic's second update
            step(2)
        assert [places(role) for role in roles.values()] == [{"meta"}, {"meta"}]
        again, _, memory = make(case, ranks)
        load_state(tmp_path, again, memory, ranks)
        assert places(again["critic"]) == {"meta"}
        here, _, memory = make(case._replace(offload=False), ranks)
        load_state(tmp_path, here, memory, ranks)
        assert places(here["critic"]) == {"cpu"}


def test_muon_of_sharded_matrices_is_that_of_whole_ones() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=random)
    with joined(runtime(1)) as ranks:
        assert ranks.mesh is not None
        whole = nn.Parameter(weight.clone())
        sharded = nn.Parameter(distribute_tensor(weight, ranks.mesh, [Shard(0)]))
        expected = Muon([whole], lr=0.1, weight_decay=0.2)
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
def test_twenty_steps_agree_on_one_two_and_four_processes(case: Case, tmp_path: Path) -> None:
    """One and two processes agree bitwise; with AdamW, whole networks to 1e-6 and four processes to 1e-5."""
    bound = (1e-6, 1e-5) if not case.muon else (MUON, MUON)
    one, by_size = alone(case, 1), {}
    for size in (2, 4):
        (tmp_path / str(size)).mkdir()
        run_ranks(size, tmp_path / str(size), [case._replace(micro_batch=4 // size)])
        by_size[size] = load_file(tmp_path / str(size) / "0.safetensors")
    assert same(one, by_size[2])
    assert largest_difference(one, alone(case, None)) < bound[0]
    assert largest_difference(one, by_size[4]) < bound[1]


def test_each_process_writes_its_rows_and_any_number_of_processes_reads_them(
    two_processes: Path, tmp_path: Path
) -> None:
    """One process's state, loaded and saved by two, is the same; so are the states of trainings with one and two."""
    assert same(stored_tensors(two_processes / "of one"), stored_tensors(two_processes / "again"))
    place = newest(two_processes / "again")
    assert place is not None
    files = [load_file(path) for path in sorted(place.glob("*.safetensors"))]
    assert len(files) == 2
    whole = stored_tensors(two_processes / "of one")
    for name, rows in read_index(place).tensors.items():
        if rows.rows is None:
            assert name in files[0]
            assert name not in files[1]
        else:
            assert [len(file[name]) if name in file else 0 for file in files] == rows.rows
            assert sum(rows.rows) == len(whole[name])
    save_trained_state(STATE, 3, tmp_path)
    assert same(stored_tensors(tmp_path), stored_tensors(two_processes / "stopped"))


@pytest.mark.parametrize("rank", [0, 1])
def test_damage_to_the_file_of_either_process_is_seen_by_one_that_reads_both(
    rank: int, two_processes: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(two_processes / "again", tmp_path / "again")) / "state-00000001"
    path = place / f"{rank:05d}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with joined(runtime(None)) as ranks:
        roles, _, memory = make(STATE, ranks)
        with pytest.raises(UserError, match=rf"{path.name}: is damaged"):
            load_state(tmp_path / "again", roles, memory)


def test_sigterm_of_one_process_is_a_state_of_all_at_the_same_step(two_processes: Path) -> None:
    """The second one gets the signal in the third step; both end as a single process would."""
    ended = [json.loads((two_processes / f"ended-{rank}.json").read_text()) for rank in range(2)]
    assert ended == [{"code": 128 + signal.SIGTERM, "steps": 3}] * 2
    place = newest(two_processes / "stopped")
    assert place is not None
    assert [path.name for path in (two_processes / "stopped").iterdir()] == ["state-00000003"]
    with joined(runtime(None)) as ranks:
        roles, _, memory = make(STATE, ranks)
        steps, curve = load_state(two_processes / "stopped", roles, memory)
    assert steps == 3
    assert [row["step"] for row in curve] == [0, 1, 2]


def test_a_part_that_one_process_cannot_write_ends_both_and_leaves_the_state_before(two_processes: Path) -> None:
    errors = [(two_processes / f"full-{rank}.txt").read_text() for rank in range(2)]
    assert "00001.safetensors: is a directory" in errors[1]
    assert errors[0] == f"process 1: {errors[1]}"
    assert [path.name for path in (two_processes / "full").iterdir()] == ["state-00000001"]


@pytest.mark.parametrize(
    ("gigabytes", "message"),
    [
        ([80, 80, 80], None),
        ([79.6, 85.0, 80], None),  # nominally the same size
        ([80, 40, 80], "process 1: its GPU has 40 GB, that of process 0 80 GB, and all get equal shares; choose"),
        (
            [24, 80, 141],
            "process 0: its GPU has 24 GB, that of process 2 141 GB, and all get equal shares",
        ),
    ],
)
def test_gpus_of_different_sizes_are_refused_by_every_process(gigabytes: list[float], message: str | None) -> None:
    memories = [int(size * 1e9) for size in gigabytes]

    class Devices(Ranks):
        """Processes with these devices."""

        def gather(self, own: Tensor) -> Tensor:
            assert own.tolist() == memories[self.rank]
            return torch.tensor(memories)

    for rank, memory in enumerate(memories):
        if message is None:
            check_sizes(Devices(rank, 3), memory)
        else:
            with pytest.raises(UserError, match=f"^{message}"):
                check_sizes(Devices(rank, 3), memory)


def test_processes_that_see_different_states_refuse_to_go_on(two_processes: Path) -> None:
    for rank in range(2):
        error = (two_processes / f"apart-{rank}.txt").read_text()
        assert "process 1 resumes at step 0, process 0 at 1; start all in one shared folder" in error


def test_what_the_first_process_decides_holds_for_all(two_processes: Path) -> None:
    assert [json.loads((two_processes / f"told-{rank}.json").read_text()) for rank in range(2)] == [[True, False]] * 2


def test_a_state_resumes_in_sharded_and_whole_runs(tmp_path: Path) -> None:
    """A sharded run's state continues to the same weights in both; a whole run's state continues in a sharded run."""
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
                again = tmp_path / "again" / f"{first} {then}"
                save_state(again, 2, roles, {}, [])
                assert same(stored_tensors(folder), stored_tensors(again))
                for number in range(2, 4):
                    step(number)
                save_state(again, 4, roles, {}, [])
                ended[first, then] = stored_tensors(again)
    assert largest_weight_difference(ended[1, 1], ended[1, None]) < MUON
    assert largest_weight_difference(ended[1, 1], ended[None, 1]) < MUON


def largest_weight_difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one if "/module/" in key)


@pytest.fixture(scope="module")
def first_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    roles, step, _ = make(Case("init", steps=2), ALONE)
    step(0)
    save_state(folder, 1, roles, {}, [])
    return folder


MOMENT, WEIGHT = "student/optimizer/0/0/exp_avg", "student/module/transformer.proj_out.weight"
CHANGES = {
    "another shape": (MOMENT, lambda moment: moment[:1, :1].clone(), rf"{MOMENT} is float32 \[1, 1\b.*, and not"),
    "another type": (WEIGHT, lambda weight: weight.half(), rf"{WEIGHT} is float16 .*, and not float32"),
    "a missing weight": (WEIGHT, None, f"{WEIGHT} is missing"),
    "a missing moment": (MOMENT, None, f"{MOMENT} is missing"),
    "a surplus weight": (f"{WEIGHT}s", lambda _: torch.ones(2), f"{WEIGHT}s belongs to none of student"),
    "a surplus role": (
        "critic/module/weight",
        lambda _: torch.ones(2),
        "critic/module/weight belongs to none of student",
    ),
    "a surplus optimiser": (
        "student/optimizer/1/0/step",
        lambda _: torch.tensor(1.0),
        "optimizer/1/0/step belongs to none",
    ),
    "a surplus parameter": ("student/optimizer/0/999/exp_avg", lambda _: torch.ones(2), ""),
    "no number": ("student/optimizer/0/-/exp_avg", lambda _: torch.ones(2), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_other_networks_or_optimisers_is_named_and_nothing_is_loaded(
    change: str, first_state: Path, tmp_path: Path
) -> None:
    tensors, (name, changed, reason) = stored_tensors(first_state), CHANGES[change]
    old = tensors.pop(name, None)
    tensors |= {} if changed is None else {name: changed(old)}
    files = [write_part(temporary_state(tmp_path, 1), 0, tensors)]
    layouts = {name: layout_of(tensor, None) for name, tensor in tensors.items()}
    publish(tmp_path, Index(step=1, curve=[], files=files, tensors=layouts))
    roles, _, _ = make(Case("init", steps=2), ALONE)
    before = {name: value.clone() for name, value in roles["student"].module.state_dict().items()}
    with pytest.raises(
        UserError, match=rf"belongs to other networks or optimisers \(.*{reason}.*\); remove this state and train from"
    ):
        load_state(tmp_path, roles, {})
    assert same(before, roles["student"].module.state_dict())


def test_micro_batches_are_dealt_in_turn_in_equal_shares() -> None:
    assert deal(8, 2, Ranks(1, 2)) == [range(2, 4), range(6, 8)]
    assert deal(8, None, Ranks(1, 2)) == [range(4, 8)]
    assert deal(8, None, ALONE) == [range(8)]
    for batch, micro_batch, size in ((8, 4, 3), (8, None, 3), (2, None, 4), (8, 3, 1)):
        with pytest.raises(UserError, match=f"a batch of {batch} .*cannot be split equally over {size} processes"):
            deal(batch, micro_batch, Ranks(0, size))


def test_gradients_and_metrics_are_means_over_the_micro_batches() -> None:
    network, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]])

    def loss_of(part: range) -> tuple[Tensor, dict[str, Tensor]]:
        loss = network(x[part.start : part.stop]).mean()
        return loss, {"loss": loss, "first": torch.tensor(float(part.start))}

    metrics = read(accumulate(network, deal(4, 1, ALONE), loss_of, ALONE, Accelerator(cpu=True)))
    torch.testing.assert_close(network.weight.grad, x.mean(0, keepdim=True))
    assert metrics["first"] == 1.5
    assert metrics["loss"] == pytest.approx(network(x).mean().item())

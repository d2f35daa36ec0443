"""Training: parameter groups, schedule, averages, exact resume, and the stop at a loss that is not finite."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from shared import save_state
from tiny import tiny_denoiser
from torch.utils._python_dispatch import TorchDispatchMode

from hiar.config import AdamW, Muon, Optimizer
from hiar.errors import UserError
from hiar.io.process_group import Ranks
from hiar.io.states import newest, states, write_part
from hiar.models.attention import Bidirectional
from hiar.training import checkpoint, loop, muon
from hiar.training.checkpoint import Saving, load_state
from hiar.training.loop import train
from hiar.training.role import Role, kept, lr_factor, make_role, update

SETTINGS = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
    muon=Muon(lr=0.01, weight_decay=0.01),
    warmup=2,
    decay="cosine",
    clip=1.0,
    ema=0.9,
    ema_from=0,
)


class Silent:
    def log(self, step: int, metrics: object) -> None: ...


def make_step(role: Role, memory: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]
    accelerator = Accelerator(cpu=True)

    def step(number: int) -> dict[str, float]:
        random = torch.Generator().manual_seed(number)
        x, text = torch.randn(2, 3, 4, 4, 4, generator=random), torch.randn(2, 5, 8, generator=random)
        out = role.module(x, torch.tensor([0.3, 0.8]), text, Bidirectional())
        loss = (out - memory.get("last", x)).square().mean()
        memory["last"] = out.detach()
        accelerator.backward(loss)
        return {"loss": loss.item(), "norm": update(role, number, accelerator).item()}

    return step


def run(folder: Path, steps: int, stop: int | None = None) -> tuple[Role, list[dict[str, float]]]:
    """Train to the end, or save and stop after ``stop`` steps, like a run that is killed right after a checkpoint."""
    role, memory = make_role(tiny_denoiser(), SETTINGS, steps), {}
    step = make_step(role, memory)
    if stop is not None:
        curve = [{"step": number, **step(number)} for number in range(stop)]
        save_state(folder, stop, {"role": role}, memory, curve)
        return role, curve
    curve = train("test", steps, step, {"role": role}, folder, Silent(), checkpoint_minutes=60, memory=memory)
    return role, curve


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole, whole_curve = run(tmp_path / "whole", 6)
    run(tmp_path / "killed", 6, stop=stop)
    resumed, resumed_curve = run(tmp_path / "killed", 6)
    assert whole_curve == resumed_curve
    for kind in (lambda role: role.module, kept):
        expected, actual = kind(whole).state_dict(), kind(resumed).state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_a_state_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    role, _ = run(tmp_path, 6, stop=2)
    run(tmp_path, 6, stop=3)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000003"]
    assert load_state(tmp_path, {"role": role}, {})[0] == 3


def test_the_newest_states_are_kept_and_each_can_be_resumed(tmp_path: Path) -> None:
    role, memory = make_role(tiny_denoiser(), SETTINGS, 12), {}  # type: ignore[var-annotated]
    step, kept_weights = make_step(role, memory), {}

    def remembered(number: int) -> dict[str, float]:
        kept_weights[number] = role.module.transformer.proj_out.weight.detach().clone()
        return step(number)

    options = {"checkpoint_minutes": 1e-9, "checkpoints_kept": 2, "memory": memory}
    train("test", 12, remembered, {"role": role}, tmp_path, Silent(), **options)
    assert [path.name for path in states(tmp_path)] == ["state-00000011", "state-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000010", "state-00000011"]
    for number in (11, 10):
        assert load_state(tmp_path, {"role": role}, {})[0] == number
        assert torch.equal(role.module.transformer.proj_out.weight, kept_weights[number])
        shutil.rmtree(states(tmp_path)[0])


def test_milestones_are_saved_and_kept_regardless_of_the_clock(tmp_path: Path) -> None:
    """Milestones are saved even if no state is due by time, and kept beside the newest states if every step is."""
    for minutes, found in ((60, [8, 4]), (1e-9, [11, 10, 8, 4])):
        role, memory, folder = make_role(tiny_denoiser(), SETTINGS, 12), {}, tmp_path / str(minutes)  # type: ignore[var-annotated]
        options = {"checkpoint_minutes": minutes, "checkpoints_kept": 2, "checkpoint_milestone": 4}
        train("test", 12, make_step(role, memory), {"role": role}, folder, Silent(), **options)  # type: ignore[arg-type]
        assert [int(path.name.removeprefix("state-")) for path in states(folder)] == found


def test_a_slowly_written_state_is_that_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates continue in place while a state is written; the next state waits for it."""
    role, memory = make_role(tiny_denoiser(), SETTINGS, 9), {}  # type: ignore[var-annotated]
    step, may_write = make_step(role, memory), threading.Event()

    def late(place: Path, rank: int, tensors: dict[str, torch.Tensor]) -> str:
        assert may_write.wait(60)
        return write_part(place, rank, tensors)

    monkeypatch.setattr(checkpoint, "write_part", late)
    with Saving(tmp_path, {"role": role}, memory) as saving:
        step(0)
        expected = {name: value.clone() for name, value in role.module.state_dict().items()}
        last = memory["last"].clone()
        saving.begin(1, [{"step": 0}])
        step(1)
        assert not saving.written()
        assert newest(tmp_path) is None
        may_write.set()
    assert not torch.equal(role.module.transformer.proj_out.weight, expected["transformer.proj_out.weight"])
    restored: dict[str, torch.Tensor] = {}
    assert load_state(tmp_path, {"role": role}, restored) == (1, [{"step": 0}])
    assert all(torch.equal(value, expected[name]) for name, value in role.module.state_dict().items())
    assert torch.equal(restored["last"], last)


@pytest.mark.parametrize(
    ("loss", "error", "line"),
    [(None, KeyboardInterrupt, None), (math.nan, UserError, "to resume from the last good state")],
)
def test_a_state_under_way_is_finished_whatever_ends_the_run(
    loss: float | None, error: type[BaseException], line: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 4)

    def slow(place: Path, rank: int, tensors: dict[str, torch.Tensor]) -> str:
        time.sleep(0.3)
        return write_part(place, rank, tensors)

    def step(number: int) -> dict[str, float]:
        if number and loss is None:
            raise KeyboardInterrupt
        return {"loss": loss if number and loss is not None else 0.0}

    monkeypatch.setattr(checkpoint, "write_part", slow)
    with pytest.raises(error, match=line):
        train("test", 4, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]


def test_a_state_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(small_disk: Path) -> None:
    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 4)
    memory: dict[str, torch.Tensor] = {}

    def step(number: int) -> dict[str, float]:
        if number == 1:
            memory["large"] = torch.zeros(1 << 18)
        return {"loss": 0.0}

    with pytest.raises(UserError, match=r"00000\.safetensors: no space left on device; free some space"):
        train("test", 4, step, {"role": role}, small_disk, Silent(), checkpoint_minutes=1e-9, memory=memory)
    assert [entry.name for entry in small_disk.iterdir()] == ["state-00000001"]
    assert load_state(small_disk, {"role": role}, {})[0] == 1


@pytest.mark.parametrize("name", ["state.json", "00000.safetensors"])
def test_a_damaged_state_is_named(name: str, tmp_path: Path) -> None:
    """Even when one bit differs; nothing of it is loaded."""
    role, _ = run(tmp_path, 6, stop=2)
    before = {key: value.clone() for key, value in role.module.state_dict().items()}
    for value in role.module.state_dict().values():
        value.zero_()
    path = tmp_path / "state-00000002" / name
    whole = path.read_bytes()
    place = whole.index(b'"shape"') + 12 if name == "state.json" else len(whole) - 3
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for damaged in (flipped, whole[:-10], b""):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"{name}: is (damaged|not the index of a state).*; remove .*state-00000002: "
        ):
            load_state(tmp_path, {"role": role}, {})
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file or directory; remove .*state-00000002: "):
        load_state(tmp_path, {"role": role}, {})
    assert not any(value.any() for value in role.module.state_dict().values())
    path.write_bytes(whole)
    load_state(tmp_path, {"role": role}, {})
    assert all(torch.equal(value, before[key]) for key, value in role.module.state_dict().items())


def test_a_state_of_another_network_is_named_on_one_line(tmp_path: Path) -> None:
    run(tmp_path, 6, stop=2)
    other = make_role(tiny_denoiser(coordinates=True), SETTINGS, 6)
    message = r"other networks .*role/module/transformer\.patch_embedding.* is float32 \[.*\], and not float32 \["
    with pytest.raises(UserError, match=message) as caught:
        load_state(tmp_path, {"role": other}, {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 330


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda name, value: {} if name.endswith("/1/exp_avg") else {name: value},
            "role/optimizer/0/1/exp_avg is missing",
        ),
        (
            lambda name, value: {name: value, name.replace("role", "other"): value},
            "other/average/.* belongs to none of role",
        ),
        (
            lambda name, value: {name: value[..., :1] if "avg" in name else value},
            r"0/exp_avg is float32 \[1, 1\], and not",
        ),
    ],
)
def test_a_state_that_lacks_something_or_holds_more_is_refused(
    change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role, entries = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 4), checkpoint._entries
    role.module(torch.ones(1, 2)).sum().backward()
    update(role, 0, Accelerator(cpu=True))
    changed = lambda *of: (pair for name, value in entries(*of) for pair in change(name, value).items())  # noqa: E731
    monkeypatch.setattr(checkpoint, "_entries", changed)
    save_state(tmp_path, 1, {"role": role}, {}, [])
    before = role.module.weight.clone()
    role.module.weight.data.zero_()
    with pytest.raises(UserError, match=rf"belongs to other networks or optimisers \(.*{reason}"):
        load_state(tmp_path, {"role": role}, {})
    assert before.any() and not role.module.weight.any()  # nothing of it was loaded


def test_training_checkpoints_as_it_goes(tmp_path: Path) -> None:
    role, memory = make_role(tiny_denoiser(), SETTINGS, 4), {}
    step = make_step(role, memory)
    train("test", 4, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=1e-9, memory=memory)
    assert load_state(tmp_path, {"role": role}, {})[0] == 3  # none after the last step, which makes the artifact


def test_every_step_is_logged_and_in_progress_bar_and_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also without memory from step to step; a resumed run counts and logs from its state's step on."""
    logged: list[tuple[int, dict[str, float]]] = []

    class Log:
        def log(self, step: int, metrics: dict[str, float]) -> None:
            logged.append((step, dict(metrics)))

    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 4)
    for steps in (2, 5):
        curve = train(
            "a run", steps, lambda n: {"loss": n / 2}, {"role": role}, tmp_path, Log(), checkpoint_minutes=1e-9
        )
        assert curve == [{"step": n, "loss": n / 2} for n in range(steps)]
        assert f"a run: {steps}/{steps}" in capsys.readouterr().err
    assert logged == [(n, {"loss": n / 2}) for n in (0, 1, 1, 2, 3, 4)]  # a run saves no state after its last step
    assert load_state(tmp_path, {"role": role}, {})[0] == 4


def test_sigterm_leaves_a_state_from_which_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """The step in which it arrives is finished; a second run ends like an uninterrupted one."""
    whole = run(tmp_path / "whole", 5)
    role, memory = make_role(tiny_denoiser(), SETTINGS, 5), {}  # type: ignore[var-annotated]
    step = make_step(role, memory)

    def ended(number: int) -> dict[str, float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number)

    roles = {"role": role}
    with pytest.raises(SystemExit) as raised:
        train("t", 5, ended, roles, tmp_path / "own", Silent(), checkpoint_minutes=60, memory=memory)
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again, curve = run(tmp_path / "own", 5)
    assert [point["step"] for point in curve] == [0, 1, 2, 3, 4]
    assert curve == whole[1]
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), whole[0].module.parameters(), strict=True))


def test_a_failed_process_of_several_waits_for_no_other(tmp_path: Path) -> None:
    """The state being written is left: the others may not know of the failure."""

    class Deserted(Ranks):
        def gather(self, own: torch.Tensor) -> torch.Tensor:
            raise AssertionError("nobody answers")

    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 2)
    with pytest.raises(KeyboardInterrupt), Saving(tmp_path, {"role": role}, {}, ranks=Deserted(1, 2)) as saving:
        saving.begin(1, [])
        raise KeyboardInterrupt
    assert newest(tmp_path) is None


def test_sigterm_in_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 2)

    def step(number: int) -> dict[str, float]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 0.0}

    curve = train("t", 2, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=60)
    assert [point["step"] for point in curve] == [0, 1]
    assert list(tmp_path.iterdir()) == []  # the artifact is next: nobody resumes from a state of the end


def test_states_are_begun_when_due_and_appear_once_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begun, seen = [0.0], [], []
    begin = Saving.begin

    def recorded(saving: Saving, step: int, curve: list[dict[str, float]]) -> None:
        begin(saving, step, curve)
        assert saving.under_way is not None
        begun.append((step, saving.under_way.part))

    def step(number: int) -> dict[str, float]:
        for _, part in begun:
            part.result(60)
        seen.append(newest(tmp_path))
        clock[0] += 50
        return {"loss": 0.0}

    monkeypatch.setattr(Saving, "begin", recorded)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 8)
    train("test", 8, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=2)
    assert [number for number, _ in begun] == [3, 6]
    third, sixth = tmp_path / "state-00000003", tmp_path / "state-00000006"
    assert seen == [None, None, None, None, third, third, third, sixth]


def test_a_loss_that_is_not_finite_stops_with_the_last_state_kept(tmp_path: Path) -> None:
    role, memory = make_role(tiny_denoiser(), SETTINGS, 6), {}
    good = make_step(role, memory)

    def step(number: int) -> dict[str, float]:
        return {"loss": math.inf} if number == 3 else good(number)

    advice = rf"loss = inf at step 3; lower the learning rate .*--restart-from {re.escape(str(tmp_path.parent))}$"
    with pytest.raises(UserError, match=advice):
        train("test", 6, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=1e-9, memory=memory)
    assert load_state(tmp_path, {"role": role}, {})[0] == 3


def test_without_a_state_a_loss_that_is_not_finite_advises_to_start_anew(tmp_path: Path) -> None:
    role = make_role(torch.nn.Linear(2, 1), SETTINGS.model_copy(update={"muon": None}), 4)
    with pytest.raises(UserError, match=r"loss = nan at step 0; .* and start over$"):
        train("test", 3, lambda _: {"loss": math.nan}, {"role": role}, tmp_path, Silent(), checkpoint_minutes=60)


class Products(TorchDispatchMode):
    """Records the dtypes in which matrix products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in muon.PRODUCTS:
            self.dtypes.add(args[0].dtype)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("arithmetic", [True, False])
@pytest.mark.parametrize("rows", [24, 6])  # tall matrices are transposed for the iteration, wide ones are not
def test_muon_is_torchs_with_and_without_bf16_arithmetic(
    arithmetic: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "multiplies_bf16", lambda: arithmetic)
    random = torch.Generator().manual_seed(0)
    start = torch.randn(rows, 12, generator=random)
    here, there = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own = muon.Muon([here], lr=0.1, weight_decay=0.2)
    torchs = torch.optim.Muon([there], lr=0.1, weight_decay=0.2)
    for _ in range(3):
        here.grad = torch.randn(rows, 12, generator=random)
        there.grad = here.grad.clone()
        with Products() as products:
            own.step()
        torchs.step()
        assert products.dtypes == {torch.bfloat16 if arithmetic else torch.float32}
    away = ((here - there).norm() / (there - start).norm()).item()
    assert away == 0 if arithmetic else away < 2**-6  # sums in another order, rounded in bf16 to 2^-9 five times
    assert (there - start).norm() > 0.5


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = tiny_denoiser()
    role = make_role(model, SETTINGS, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, matrices = ([names[id(p)] for group in o.param_groups for p in group["params"]] for o in role.optimizers)
    assert all("blocks" in name and name.endswith("weight") for name in matrices)
    assert {"transformer.proj_out.weight", "transformer.patch_embedding.weight"} <= set(adamw)
    assert sorted(adamw + matrices) == sorted(names.values())
    without = make_role(model, SETTINGS.model_copy(update={"muon": None}), 10)
    assert [type(optimizer) for optimizer in without.optimizers] == [torch.optim.AdamW]


@given(st.integers(0, 20), st.integers(21, 200))
def test_the_learning_rate_warms_up_and_falls_to_nothing(warmup: int, steps: int) -> None:
    settings = SETTINGS.model_copy(update={"warmup": warmup})
    factors = [lr_factor(settings, step, steps) for step in range(steps)]
    assert max(factors) == factors[warmup] == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[0] > 0
    assert lr_factor(settings, steps, steps) == pytest.approx(0)


def test_the_average_starts_from_the_first_weights_and_follows(tmp_path: Path) -> None:
    role = make_role(torch.nn.Linear(2, 1, bias=False), SETTINGS.model_copy(update={"muon": None}), 10)
    weight, average = role.module.weight, kept(role).weight
    seen = []
    for step in range(5):
        weight.grad = torch.ones_like(weight)
        update(role, step, Accelerator(cpu=True))
        seen.append(weight.detach().clone())
    expected = seen[0]
    for count, value in enumerate(seen[1:], start=1):
        expected = expected.lerp(value, 1 - min(0.9, (1 + count) / (10 + count)))
    torch.testing.assert_close(average, expected)


def test_the_first_average_is_a_copy_and_a_late_one_ignores_earlier_weights() -> None:
    """Checked after each update; if averaging would begin after the end, the last weights are kept.

    A late average has its full decay at once, like the released code's, which begins at step 200 there.
    """
    accelerator = Accelerator(cpu=True)
    for first, steps, averaged in ((0, 3, [0, 1, 2]), (2, 5, [2, 3, 4]), (9, 3, [2])):
        settings = SETTINGS.model_copy(update={"muon": None, "ema": 0.5, "ema_from": first})
        role = make_role(torch.nn.Linear(2, 1, bias=False), settings, steps)
        weight, initial = role.module.weight, role.module.weight.detach().clone()
        expected, count = initial, 0
        for step in range(steps):
            weight.grad = torch.ones_like(weight)
            update(role, step, accelerator)
            if step in averaged:
                growing = min(0.5, (1 + count) / (10 + count))
                decay = (0.5 if first else growing) if count else 0.0
                expected, count = decay * expected + (1 - decay) * weight.detach(), count + 1
            torch.testing.assert_close(kept(role).weight, expected)
        assert not torch.equal(expected, initial)
        assert not kept(role).weight.requires_grad


def test_an_update_clips_schedules_every_optimiser_and_clears_gradients() -> None:
    role = make_role(tiny_denoiser(), SETTINGS.model_copy(update={"clip": 0.5}), 10)
    peaks = [0.001, 0.01]
    for step, factor in ((0, 1 / 3), (1, 2 / 3), (2, 1.0), (6, 0.5)):
        gradients = {}
        for index, parameter in enumerate(role.module.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 * (index + 1))
            gradients[parameter] = parameter.grad
        raw = torch.cat([grad.flatten().clone() for grad in gradients.values()])
        norm = update(role, step, Accelerator(cpu=True)).item()
        assert norm == pytest.approx(raw.norm().item(), rel=1e-5)
        clipped = torch.cat([grad.flatten() for grad in gradients.values()])
        torch.testing.assert_close(clipped, raw * 0.5 / raw.norm(), rtol=1e-4, atol=0)
        rates = [group["lr"] for optimizer in role.optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([peak * factor for peak in peaks])
        assert all(parameter.grad is None for parameter in role.module.parameters())


def test_optimisers_have_the_settings() -> None:
    role = make_role(tiny_denoiser(), SETTINGS, 10)
    adamw, muon = (optimizer.param_groups[0] for optimizer in role.optimizers)
    assert (adamw["betas"], adamw["weight_decay"]) == ((0.9, 0.99), 0.0)
    assert muon["weight_decay"] == 0.01
    role = make_role(torch.nn.Linear(2, 1), SETTINGS, 10)  # no parameters for Muon, which refuses an empty list
    assert [type(optimizer) for optimizer in role.optimizers] == [torch.optim.AdamW]
    frozen = tiny_denoiser()
    frozen.transformer.blocks[0].requires_grad_(False)
    role = make_role(frozen, SETTINGS, 10)
    learning = {id(p) for o in role.optimizers for group in o.param_groups for p in group["params"]}
    assert learning == {id(p) for p in frozen.parameters() if p.requires_grad}


def test_the_rate_of_every_update() -> None:
    cosine = SETTINGS.model_copy(update={"warmup": 2})
    constant = cosine.model_copy(update={"decay": "constant"})
    assert [lr_factor(constant, step, 6) for step in range(6)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    fall = [0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
    assert [lr_factor(cosine, step, 6) for step in range(6)] == pytest.approx([1 / 3, 2 / 3, *fall])
    assert lr_factor(cosine, 2, 2) == 1  # a run that is only its warm-up


def test_no_average_is_kept_without_ema() -> None:
    role = make_role(tiny_denoiser(), SETTINGS.model_copy(update={"ema": None}), 10)
    assert role.average is None
    assert kept(role) is role.module

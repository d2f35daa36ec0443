"""The context manager of a stage: what an interrupted stage resumes from, and the figures that stages write."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from students import smoke_params

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import content_hash, write_manifest
from hiar.io.process_group import ALONE, Ranks
from hiar.stages import common, definition
from hiar.stages.common import Paths, sample_world, stage, tail_mean, write_curve, write_log, write_metrics
from hiar.tracking.spool import spool_folder, take_lock, waiting
from hiar.worlds.interface import FIRST_CLIP, open_world


def resumes(workspace: Path, params: Params, seed: int = 0) -> bool:
    """Begin a stage and leave it unfinished; returns whether it found the work of an earlier attempt."""
    paths = Paths(workspace, seed)
    parents = {"codec": (Paths(workspace, 0).codec, "codec")}
    with (
        pytest.raises(KeyboardInterrupt),
        stage("teacher", params, workspace, paths.teacher, seed=seed, parents=parents) as work,
    ):
        found = (work.folder / "left").exists()
        (work.folder / "left").touch()
        raise KeyboardInterrupt
    return found


def of_other_parameters(params: Params, workspace: Path, patch: pytest.MonkeyPatch) -> Params:
    return params.model_copy(update={"teacher": params.teacher.model_copy(update={"guidance": 2.5})})


def of_another_parent(params: Params, workspace: Path, patch: pytest.MonkeyPatch) -> Params:
    make_codec(workspace, "other weights")
    return params


def of_other_code(params: Params, workspace: Path, patch: pytest.MonkeyPatch) -> Params:
    patch.setattr(common, "code_hash", lambda *_: "of another version")
    return params


def make_codec(workspace: Path, weights: str) -> None:
    folder = Paths(workspace, 0).codec
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(weights)
    write_manifest(folder, "codec")


@pytest.mark.parametrize("change", [of_other_parameters, of_another_parent, of_other_code])
def test_work_is_resumed_only_with_the_same_parameters_parents_and_code(
    change: Callable[[Params, Path, pytest.MonkeyPatch], Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = smoke_params()
    make_codec(tmp_path, "weights")
    assert [resumes(tmp_path, params) for _ in range(2)] == [False, True]
    changed = change(params, tmp_path, monkeypatch)
    assert [resumes(tmp_path, changed) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("what", ["parameters", "code"])
def test_a_change_during_a_stage_leaves_no_artifact_and_loses_no_work(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise DVC, which hashes inputs after the run, would record the changed ones as those of the artifact."""
    params, path, out = smoke_params(), tmp_path / "params.yaml", Paths(tmp_path, 0).codec
    before = yaml.safe_dump(params.model_dump(mode="json"))
    path.write_text(before)
    begins = []

    def run() -> None:
        with stage("codec", params, tmp_path, out, seed=0, parents={}) as work:
            begins.append((work.folder / "weights").exists())
            (work.folder / "weights").write_text("of hours")
            work.finish("codec")
            if len(begins) == 1 and what == "parameters":
                path.write_text(before.replace(f"steps: {params.codec.training.steps}", "steps: 31", 1))
            elif len(begins) == 1:
                monkeypatch.setattr(definition, "code_hash", lambda *_: "of another branch")

    field = r"params\.yaml: codec\.training\.steps = 31: was 20, and" if what == "parameters" else "/hiar: the code has"
    with pytest.raises(UserError, match=rf"{field} changed while stage codec ran; restore it, and run again"):
        run()
    assert not out.exists()
    path.write_text(before)
    monkeypatch.undo()
    run()
    assert begins == [False, True]
    assert (out / "weights").read_text() == "of hours"


def test_the_run_of_a_stage_names_the_content_of_all_its_parents_and_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HIAR_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    parents = {name: (Paths(tmp_path, 0).root / name, name) for name in ("codec", "pairs")}
    for name, (folder, kind) in parents.items():
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"of the {name}")
        write_manifest(folder, kind)
    out, spool = Paths(tmp_path, 0).teacher, spool_folder(tmp_path)
    spool.mkdir(parents=True)
    with take_lock(spool), stage("teacher", smoke_params(), tmp_path, out, seed=0, parents=parents) as work:
        (work.folder / "weights").write_text("of the teacher")
        work.finish("checkpoint")
    (records,) = waiting(spool)
    tags: dict[str, str] = {}
    for line in records.read_text().splitlines():
        tags |= json.loads(line).get("tags", {})
    assert tags.pop("hardware")
    contents = {f"content of {name}": content_hash(folder) for name, (folder, _) in parents.items()}
    assert tags == contents | {"content": content_hash(out), "path": "artifacts/seed-0/teacher"}


def test_stages_of_variants_have_variant_threads(tmp_path: Path) -> None:
    params = smoke_params(runtime={"threads": 2, "variant_threads": 1})
    before = torch.get_num_threads()
    try:
        for variant, threads in ((None, 2), ("hiar", 1)):
            out = Paths(tmp_path, 0).root / str(variant)
            with stage("codec", params, tmp_path, out, seed=0, parents={}, variant=variant) as work:
                assert torch.get_num_threads() == threads
                work.finish("codec")
    finally:
        torch.set_num_threads(before)


def test_prompts_of_samples_have_the_samples_caption_dropout() -> None:
    params = smoke_params(world={"caption_dropout": 0.9}, sample={"caption_dropout": 0.0})
    numbers = {"seed": 0, "first": FIRST_CLIP["sample"], "count": 20}
    sampled, trained = sample_world(params).prompts(**numbers), open_world(params.world).prompts(**numbers)
    assert sum(map(len, sampled)) > sum(map(len, trained))


def test_a_figure_is_the_mean_of_the_last_tenth_of_its_values() -> None:
    curve: list[dict[str, float]] = [{"step": float(step), "loss": float(step)} for step in range(29)]
    assert tail_mean(curve, "loss") == 27.5
    assert tail_mean(curve[:9], "loss") == 8.0
    assert tail_mean([{"step": 0.0, "dmd": 3.0}, *curve], "dmd") == 3.0  # not measured at every update


def test_curves_have_all_columns_and_figures_six_digits(tmp_path: Path) -> None:
    write_curve(tmp_path, "seed-0/init", [{"step": 0, "critic": 0.123456789}, {"step": 1, "critic": 2.0, "dmd": 1e-9}])
    assert (tmp_path / "curves/seed-0/init.csv").read_bytes() == b"step,critic,dmd\n0,0.123457,\n1,2,1e-09\n"
    write_metrics(tmp_path, "seed-0/init", {"loss": 12.3456789, "count": 3.0})
    assert json.loads((tmp_path / "metrics/seed-0/init.json").read_text()) == {"loss": 12.3457, "count": 3}
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=r"^seed-0/init: loss = -?(nan|inf): should be finite"):
            write_metrics(tmp_path, "seed-0/init", {"count": 3.0, "loss": value})
    assert json.loads((tmp_path / "metrics/seed-0/init.json").read_text()) == {"loss": 12.3457, "count": 3}


def test_a_log_has_the_start_duration_and_peak_memory_of_a_stage(tmp_path: Path) -> None:
    began, now = time.monotonic() - 5000, datetime.now(UTC)
    write_log(tmp_path, "seed-0/init", smoke_params(), began, stage="init", seed=0, resumed=True)
    log = json.loads((tmp_path / "logs/seed-0/init.json").read_text())
    assert 5000 <= log["seconds"] < 6000
    assert 4900 < (now - datetime.fromisoformat(log["started"])).total_seconds() < 5100
    assert psutil.Process().memory_info().rss * 0.9 < log["peak_memory_mb"] * 2**20 < psutil.virtual_memory().total
    assert (log["stage"], log["seed"], log["variant"], log["resumed"]) == ("init", 0, None, True)


def test_a_log_names_as_many_gpus_as_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that has more."""

    class Together(Ranks):
        @contextmanager
        def agreed(self) -> Iterator[None]:
            yield

    monkeypatch.setattr(common, "hardware", lambda device, processes=None: f"{processes}x GPU")
    for ranks in (ALONE, Together(size=3)):
        monkeypatch.setattr(common, "joined", lambda runtime, ranks=ranks: nullcontext(ranks))
        out = Paths(tmp_path, ranks.size).codec
        with stage("codec", smoke_params(), tmp_path, out, seed=0, parents={}, shared=True) as work:
            work.finish("codec")
        log = json.loads((tmp_path / f"logs/seed-{ranks.size}/codec.json").read_text())
        assert log["hardware"] == f"{ranks.size}x GPU"

"""The weights that MLflow's registry refers to."""

import json
import shutil

import pytest
import yaml

from flows.models import models_of


def test_a_students_source_is_the_object_that_dvc_stores_its_folder_as(smoke):
    models = {model.variant: model for model in models_of(smoke, "s3://bucket/hiar/")}
    assert set(models) == {"self-forcing", "hiar"}  # no walked student, which has no weights of its own
    for variant, model in models.items():
        start, key = model.source.split("/files/md5/")
        assert start == "s3://bucket/hiar"
        listed = json.loads((smoke.parents[1] / ".dvc" / "cache" / "files" / "md5" / key).read_text())
        folder = smoke / "artifacts" / "seed-0" / "distill" / variant
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {one["relpath"] for one in listed} == found
        assert model.seed == 0
        assert model.aliases == ["seed-0", "best"]


@pytest.mark.parametrize(("metric", "sign"), [("good", 1), ("drift_lite", -1)])
def test_the_best_seed_has_the_most_good_frames_or_without_that_metric_the_least_drift(metric, sign, smoke, tmp_path):
    (tmp_path / "metrics").mkdir()
    for name in ("params.yaml", "dvc.lock", "metrics/summary.json"):
        shutil.copyfile(smoke / name, tmp_path / name)
    params, lock, summary = tmp_path / "params.yaml", tmp_path / "dvc.lock", tmp_path / "metrics" / "summary.json"
    params.write_text(yaml.safe_dump(yaml.safe_load(params.read_text()) | {"seeds": [0, 1, 2]}))
    whole, scores = yaml.safe_load(lock.read_text()), json.loads(summary.read_text())
    for variant, goods in (("hiar", (0.1, 0.3, 0.2)), ("self-forcing", (0.2, 0.1, 0.2))):
        for seed, good in enumerate(goods):
            outs = [{"path": f"artifacts/seed-{seed}/distill/{variant}", "md5": f"{seed}{0:031}.dir"}]
            whole["stages"][f"distill@{seed}-{variant}"] = {"outs": outs}
            scores["distill"][variant][f"seed-{seed}"] = {metric: {"mean": sign * good, "se": None, "n": 1}}
    for stage, variants in scores.items():
        for rows in variants.values():
            rows |= {f"seed-{seed}": rows["seed-0"] for seed in (1, 2) if stage != "distill" or "seed-1" not in rows}
    lock.write_text(yaml.safe_dump(whole))
    summary.write_text(json.dumps(scores))
    found = [(model.variant, model.seed) for model in models_of(tmp_path, "s3://b") if "best" in model.aliases]
    assert sorted(found) == [("hiar", 1), ("self-forcing", 0)]  # of two equal ones, the first

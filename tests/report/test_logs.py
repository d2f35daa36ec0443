"""Time, memory and hardware from the stages' logs, as text."""

import json

from hiar.report.logs import machine_facts, read_logs, stage_logs


def log(started, seconds, memory, hardware="a CPU", resumed=False, threads=2):
    return {
        "started": f"2026-01-0{started}T00:00:00+00:00",
        "seconds": seconds,
        "peak_memory_mb": memory,
        "hardware": hardware,
        "threads": threads,
        "resumed": resumed,
    }


def write_and_read(folder, **logs):
    for name, content in logs.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_logs(folder)


def test_stages_are_listed_in_the_order_in_which_they_ran(tmp_path):
    logs = write_and_read(
        tmp_path,
        score=log(3, 4.4, 900),
        seed_0__codec=log(1, 65.4, 1023.6, resumed=True),
        seed_0__teacher=log(2, 3599.8, 1024, "a GPU", threads=7),
    )
    rows = stage_logs(logs)
    assert [(one.name, one.time, one.memory, one.resumed) for one in rows] == [
        ("seed_0/codec", "1 min 05 s", "1024 MB", True),
        ("seed_0/teacher", "60 min 00 s", "1.0 GB", False),
        ("score", "4 s", "900 MB", False),
    ]
    assert [(one.threads, one.hardware) for one in rows] == [("2", "a CPU"), ("7", "a GPU"), ("2", "a CPU")]
    assert dict(machine_facts(logs)) == {
        "Hardware": "a CPU, a GPU",
        "Stages, summed": "61 min 10 s",  # not the sum of rounded times
        "Highest memory": "1.0 GB",
    }


def test_a_gpus_memory_is_shown_beside_the_hosts(tmp_path):
    on_gpu = log(2, 1, 3000, "a GPU") | {"peak_gpu_memory_mb": 40 * 1024, "peak_gpu_memory_kept_mb": 60 * 1024}
    logs = write_and_read(tmp_path, codec=log(1, 1, 5000), teacher=on_gpu)
    assert [one.memory for one in stage_logs(logs)] == ["4.9 GB", "2.9 GB, GPU 40.0 GB"]
    facts = dict(machine_facts(logs))
    assert (facts["Highest memory"], facts["Highest memory of a GPU"]) == ("4.9 GB", "40.0 GB")


def test_stages_that_began_together_are_listed_by_name(tmp_path):
    """Whatever the order in which the folder lists its files."""
    names = [f"seed-{number}" for number in (3, 0, 7, 1, 6, 2, 5, 4)]
    assert [one["name"] for one in write_and_read(tmp_path, **{name: log(1, 1, 1) for name in names})] == sorted(names)


def test_a_log_that_a_kill_has_cut_off_is_left_out(tmp_path):
    (tmp_path / ".codec.json.tmp").write_text(json.dumps(log(1, 1, 1)))  # was being written
    assert [one["name"] for one in write_and_read(tmp_path, codec=log(1, 1, 1), init='{"stage": "in', score="[1]")] == [
        "codec"
    ]
    assert machine_facts(read_logs(tmp_path / "none")) == []

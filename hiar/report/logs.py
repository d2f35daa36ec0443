"""Time, memory and machine of the stages, from their logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Log = dict[str, Any]


@dataclass(frozen=True)
class StageLog:
    """One stage's last run, as text."""

    name: str
    time: str
    memory: str
    threads: str
    hardware: str
    resumed: bool


def read_logs(folder: Path) -> list[Log]:
    """The logs under ``folder``, in the order in which the stages ran; unreadable ones are left out.

    Logs are not versioned: a workspace whose outputs came from a cache has none.
    """
    logs = []
    for path in folder.rglob("*.json"):
        try:
            logs.append(
                {**json.loads(path.read_text(encoding="utf-8")), "name": str(path.relative_to(folder).with_suffix(""))}
            )
        except (OSError, ValueError, TypeError):
            continue
    return sorted(logs, key=lambda log: (log["started"], log["name"]))


def stage_logs(logs: Sequence[Log]) -> list[StageLog]:
    """The rows of the report's table of stages."""
    return [
        StageLog(
            name=log["name"],
            time=_duration(log["seconds"]),
            memory=_memory(log["peak_memory_mb"]) + _on_gpu(log),
            threads=str(log["threads"]),
            hardware=log["hardware"],
            resumed=log["resumed"],
        )
        for log in logs
    ]


def machine_facts(logs: Sequence[Log]) -> list[tuple[str, str]]:
    """Hardware, total time and peak memory, also of GPUs where there were any; nothing without logs."""
    if not logs:
        return []
    facts = [
        ("Hardware", ", ".join(sorted({log["hardware"] for log in logs}))),
        ("Stages, summed", _duration(sum(log["seconds"] for log in logs))),
        ("Highest memory", _memory(max(log["peak_memory_mb"] for log in logs))),
    ]
    if of_gpus := [log["peak_gpu_memory_mb"] for log in logs if "peak_gpu_memory_mb" in log]:
        facts.append(("Highest memory of a GPU", _memory(max(of_gpus))))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _on_gpu(log: Log) -> str:
    """The peak memory of the GPU; stages on a CPU, and older logs, have none."""
    return f", GPU {_memory(log['peak_gpu_memory_mb'])}" if "peak_gpu_memory_mb" in log else ""


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"

"""The resources that a stage requests from its work pool, as job variables of the pool's type (infra/pools)."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import get_client

from hiar.config import Params

DEPLOYMENT = "stage/stage"


def job_variables(kind: str | None, params: Params, stage: str) -> dict[str, Any]:
    """Job variables for a pool of type ``kind``: GPUs if params.yaml asks for them, and its memory.

    Of Kubernetes a stage gets one GPU per process. Of Docker it gets all, since of a number Docker gives each container
    the first ones; as with a process pool, which requests nothing, stages share the machine's devices (flows.devices).
    What is not set stays at the pool's defaults.
    """
    runtime, asked = params.runtime, dict[str, Any]()
    count = runtime.processes_of(stage) if runtime.device == "cuda" else None
    if kind == "kubernetes":
        asked = {"gpus": count, "memory": runtime.memory_gb and f"{runtime.memory_gb:g}G"}
    elif kind == "docker":
        # In bytes, as Docker's suffixes mean powers of two.
        limit = runtime.memory_gb and str(round(runtime.memory_gb * 1e9))
        cards = count and [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
        asked = {"gpus": cards, "mem_limit": limit}
    return {name: value for name, value in asked.items() if value is not None}


def kind_of_pool() -> str | None:
    """The type of the work pool of the deployment of stages; None without a pool, as when it has been deleted."""
    with get_client(sync_client=True) as client:
        pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        return None if pool is None else client.read_work_pool(pool).type

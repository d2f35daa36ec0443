"""`python -m flows.stack.watcher`: dead runs are marked as crashed, which frees their slots, and scheduled again.

Prefect's automations are not safe for this: after a server's restart one marked a completed run as crashed. Here a run
is touched only if it is running or pending without a sign of life for longer than `SILENCE`, counted while this watcher
and the server were up, or if it has crashed, as workers report of killed processes; and only if a deployment started
it: others cannot be scheduled again, and emit heartbeats at other times. One that is being
cancelled by a worker which died is cancelled, and the stages of an experiment with it.

All times are the server's: the clocks of workers, and of the watcher's own machine, may be minutes off.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from flows.stack.reach import time_of, wait_for_server
from hiar.errors import UserError, say

LOOK_SECONDS = 5.0
SILENCE = {  # heartbeats come every 30 s
    "RUNNING": timedelta(seconds=70),
    "PENDING": timedelta(seconds=110),
    "CANCELLING": timedelta(seconds=70),
}
PENDING = "HIAR_PENDING_SECONDS"
PAUSE = timedelta(seconds=30)  # a longer time between two looks means that the machine slept
RECENT = timedelta(days=7)  # older crashes are left alone; a stack may be down for a night or a weekend
ATTEMPTS = 10  # of a run, in all
SILENT = "without a sign of life"
HEARTBEAT = "prefect.flow-run.heartbeat"
SKEW = timedelta(days=1)  # that a worker's clock may be off; signs of life are found by it
PAGE = 50  # events of one request: with signs of two workers, those of the one whose clock is behind come late


def main() -> int:
    """Watch until SIGTERM; a mistake is one line and exit code 2."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        pending_silence()  # refused before anything is watched
        watch()
    except UserError as error:
        say(str(error))
    return 2


def watch() -> NoReturn:
    """Look again and again. Raises UserError as `wait_for_server` does."""
    wait_for_server()
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    up_since: datetime | None = None  # heartbeats that were sent while the server was away are lost
    looked = datetime.fromtimestamp(0, UTC)
    while True:
        try:
            with get_client(sync_client=True) as client:
                while True:
                    now = time_of(client.hello())
                    # No run gave signs of life while the machine slept; of a clock that was set back none tells.
                    if up_since is None or not timedelta(0) <= now - looked <= PAUSE:
                        up_since = now
                    looked = now
                    for line in look(client, up_since, now):
                        print(line, flush=True)
                    time.sleep(LOOK_SECONDS)
        except (HTTPError, PrefectException, OSError) as error:
            if up_since is not None:
                print(f"the server does not answer: {type(error).__name__}", flush=True)
            up_since = None
            wait_for_server()


def pending_silence() -> timedelta:
    """How long a run may be pending; HIAR_PENDING_SECONDS sets more where runs wait for a machine and its image."""
    said = os.environ.get(PENDING)
    if said is None:
        return SILENCE["PENDING"]
    if not re.fullmatch(r"[0-9]{1,6}", said) or int(said) < 1:
        raise UserError(f"{PENDING} = {said}: should be 1 to 999999 seconds; unset it for 110")
    return timedelta(seconds=int(said))


def look(client: Any, up_since: datetime, now: datetime) -> list[str]:
    """Mark the runs that are silent as crashed, or cancelled where they were to be, and schedule those that crashed
    again; what was done, in lines.

    client: Prefect's, synchronous. up_since: silence before it counts for nothing. Both times are the server's.
    """
    silence = SILENCE | {"PENDING": pending_silence()}
    done = _cancel_stages(client, now)
    for run in _runs(client, "CRASHED"):
        if run.deployment_id is None or now - run.state.timestamp >= RECENT:
            continue
        if _attempts(client, run) < ATTEMPTS:
            done += _schedule(client, run)
    for run in _runs(client, *silence):
        allowed = silence[run.state.type.value]
        signs = max(up_since, run.state.timestamp)
        if run.deployment_id is None or now - signs <= allowed:
            continue
        if now - max(signs, last_heartbeat(client, run.id, now) or signs) > allowed:
            done += _cancel(client, run) if run.state.is_cancelling() else _crash(client, run)
    return done


def last_heartbeat(client: Any, run: Any, now: datetime) -> datetime | None:
    """When the server last heard of a run, by the server's clock; events are sorted by their worker's."""
    from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter

    events = client.read_events(
        EventFilter(
            occurred=EventOccurredFilter(since=now - SKEW, until=now + SKEW),
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]),
        ),
        limit=PAGE,
    ).events
    return max((event.received for event in events), default=None)


def _runs(client: Any, *types: str, below: Sequence[Any] = ()) -> list[Any]:
    """The runs in states of these types, newest first, as many as the server returns at once.

    below: only runs started by these.
    """
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterParentFlowRunId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType(one) for one in types]))
    )
    if below:
        wanted.parent_flow_run_id = FlowRunFilterParentFlowRunId(any_=[run.id for run in below])
    return list(client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC))


def _cancel_stages(client: Any, now: datetime) -> list[str]:
    """Cancel the stages of cancelled experiments: Prefect lets them go on, for days, on devices that others need."""
    from prefect.states import Cancelling

    ended = _runs(client, "CANCELLING", "CANCELLED")
    recent = [run for run in ended if run.deployment_id is not None and now - run.state.timestamp < RECENT]
    stages = _runs(client, "SCHEDULED", "PENDING", "RUNNING", below=recent) if recent else []
    for stage in stages:
        client.set_flow_run_state(stage.id, Cancelling(message="its experiment was cancelled"))
    return [f"{stage.name} ({stage.id}): is being cancelled, as its experiment is" for stage in stages]


def _attempts(client: Any, run: Any) -> int:
    """How often a run began, or crashed before: Prefect's own count lacks processes that never reached their flow.

    Waiting for a machine is not an attempt.
    """
    if run.run_count >= ATTEMPTS:
        return int(run.run_count)
    states = [one for one in client.read_flow_run_states(run.id) if one.type.value == "CRASHED"]
    return max(run.run_count, sum(not (one.message or "").endswith(SILENT) for one in states))


def _cancel(client: Any, run: Any) -> list[str]:
    """End a run whose worker died while cancelling it; otherwise it would keep its slot for ever."""
    from prefect.states import Cancelled

    ended = _set(client, run, Cancelled(message=f"{run.state.name}, and {SILENT}"))
    return [f"{run.name} ({run.id}): cancelled"] if ended else []


def _crash(client: Any, run: Any) -> list[str]:
    """Mark a run as crashed, if its state has not changed meanwhile, and schedule it again."""
    from prefect.states import Crashed

    seen = _set(client, run, Crashed(message=f"{run.state.name}, but {SILENT}"))
    if seen is None:
        return []
    if seen.run_count >= ATTEMPTS:
        return [f"{run.name} ({run.id}): crashed for good, after {seen.run_count} attempts"]
    return [f"{run.name} ({run.id}): crashed", *_schedule(client, seen)]


def _set(client: Any, run: Any, state: Any) -> Any:
    """Set a run's state if it has not changed meanwhile; return the run as it was, or None if it has changed.

    Also None if the server refuses.
    """
    from prefect.client.schemas.responses import SetStateStatus

    seen = client.read_flow_run(run.id)
    if seen.state is None or seen.state.id != run.state.id:
        return None
    return seen if client.set_flow_run_state(run.id, state).status == SetStateStatus.ACCEPT else None


def _schedule(client: Any, run: Any) -> list[str]:
    """Schedule a crashed run, so that the next free worker takes it."""
    from prefect.states import Scheduled

    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message="rescheduled by the watcher"))
    return [f"{run.name} ({run.id}): scheduled again after attempt {run.run_count}"]


if __name__ == "__main__":
    sys.exit(main())

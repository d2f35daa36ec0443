"""The end of an experiment whose workspace has a remote: all data are pushed, and the students registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.processes import ProcessGroups
from flows.remote import Remote, push

REGISTERED = Path(".dvc", "tmp", "hiar-registered")  # the state of the workspace whose students are in the registry


def store_and_register(
    remote: Remote, groups: ProcessGroups, tell: Callable[[str], None], complete: bool = True
) -> None:
    """Push what the remote lacks; if all is there and the experiment is ``complete``, register its students.

    This also completes an earlier run that was killed between the two.
    """
    if push(remote, groups, tell) and complete and not remote.has(REGISTERED):
        from flows.models import register_models  # loads torch

        state = remote.state()
        register_models(remote)
        remote.note(REGISTERED, state)

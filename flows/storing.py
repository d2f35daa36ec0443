"""What an experiment ends with where its workspace has a remote: all data in it, and the students in the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.processes import ProcessGroups
from flows.remote import Remote, push

REGISTERED = Path(".dvc", "tmp", "hiar-registered")  # the state of the workspace whose students are in the registry


def store_and_register(
    remote: Remote, groups: ProcessGroups, tell: Callable[[str], None], complete: bool = True
) -> None:
    """Push what is not there; where all is and the experiment is ``complete``, its students come into the registry.

    Also when an earlier run was killed between the two.
    """
    if push(remote, groups, tell) and complete and not remote.has(REGISTERED):
        from flows.models import register_models  # loads torch

        state = remote.state()
        register_models(remote)
        remote.note(REGISTERED, state)

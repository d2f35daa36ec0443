"""How runs look in Prefect's UI: their names and tags, an experiment's comparison, and links to its report."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.checkout import commit_of
from flows.comparison import comparison_table
from flows.remote import Remote
from hiar.config import Params
from hiar.errors import UserError
from hiar.storage.runs import DEFAULT
from hiar.tracking.identity import project_of

DAYS = 7.0  # how long a link to an S3 store is valid: the longest that S3 allows
NAMES = {"index.html": "report", "contact_sheet.png": "contact-sheet"}  # files of reports/: suffixes of artifacts


def run_name() -> str:
    """A run's name: what runs, and the commit, as in "smoke 1a2b3c4" or "smoke codec@0 1a2b3c4"."""
    given = flow_run.parameters
    parts = (given.get("name") or DEFAULT, given.get("stage"), commit_of(Path.cwd()))
    return " ".join(part for part in parts if part)


def tag(name: str | None, params: Params) -> None:
    """Give this run the tags by which it is found: experiment, commit, seeds."""
    seeds = [f"seed:{seed}" for seed in params.seeds]
    tags = {*flow_run.tags, f"experiment:{name or DEFAULT}", f"commit:{commit_of(Path.cwd()) or 'none'}", *seeds}
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags))


def show(workspace: Path, remote: Remote | None, tell: Callable[[str], None]) -> None:
    """Attach an experiment's comparison and links to its report to the flow run, as artifacts.

    Their keys contain the experiment's name, so that the UI keeps a history for each. If the remote is on S3, links
    lead to copies in it, which open on any machine, otherwise to this machine's files. If the store refuses, a line
    says so, and the run does not fail.
    """
    root = project_of(workspace)
    name = None if workspace.resolve() == root else workspace.name
    # Prefect takes small letters, numbers and hyphens.
    key = re.sub(r"[^a-z0-9]+", "-", (name or DEFAULT).lower()).strip("-")
    create_markdown_artifact(comparison_table(workspace), key=f"{key}-comparison", description="Mean ± standard error")
    links = {file: (workspace / "reports" / file).resolve().as_uri() for file in NAMES}
    said = "On the machine of this run"
    if remote is not None and not remote.away and remote.url.startswith("s3://"):
        try:
            links |= _shared(remote, root, name)
            said = f"From the store; works for {DAYS:g} days, `hiar storage report` makes a new link"
        except UserError as error:
            tell(f"the report is not in the store: {error}")
    for file, ending in NAMES.items():
        create_link_artifact(links[file], key=f"{key}-{ending}", link_text=file, description=said)


def _shared(remote: Remote, root: Path, name: str | None) -> dict[str, str]:
    """Links to the files of the report in the store. Raises UserError as `share_report` does."""
    from hiar.storage.reports import share_report
    from hiar.storage.store import open_store

    return {file: link for file, link in share_report(open_store(root, remote.name), root, name, DAYS) if file in NAMES}

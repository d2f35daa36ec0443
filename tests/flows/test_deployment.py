"""prefect.yaml: its deployment names the flow, fits its parameters, and fires on its schedule."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
(DEPLOYMENT,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture
def flow(monkeypatch):
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    return load_flow_from_entrypoint(DEPLOYMENT["entrypoint"])


def test_its_parameters_are_those_of_the_flow(flow):
    assert flow.validate_parameters(DEPLOYMENT["parameters"]) == DEPLOYMENT["parameters"]


@pytest.mark.usefixtures("prefect_server")
def test_its_schedule_makes_runs(flow):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    (schedule,) = DEPLOYMENT["schedules"]
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            flow_id=client.create_flow(flow),
            name=DEPLOYMENT["name"],
            schedules=[DeploymentScheduleCreate(schedule={"cron": schedule["cron"], "timezone": schedule["timezone"]})],
        )
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={})
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    assert runs
    assert {(run.expected_start_time.hour, run.expected_start_time.minute) for run in runs} == {(3, 0)}

import pytest

from flows.pipeline import StageFailure, stale_stages

pytestmark = pytest.mark.usefixtures("prefect_server")


def run_flow(**options):
    """The failure of the flow, or None."""
    from flows.experiment import experiment

    state = experiment(return_state=True, **options)
    if state.is_completed():
        return None
    failure = state.result(raise_on_failure=False)
    assert isinstance(failure, StageFailure), failure
    return failure


def test_stages_run_in_order_and_side_by_side_and_never_again(project, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    # Each variant waits for the other: one after the other they would never end.
    project.order("distill-0-hiar", "touch hiar", "wait self-forcing")
    project.order("distill-0-self-forcing", "touch self-forcing", "wait hiar")
    assert run_flow() is None
    events = project.events()
    assert events[:2] == ["begin codec-0", "end codec-0"]
    assert events[-2:] == ["begin score", "end score"]
    assert stale_stages(project.folder) == []
    assert run_flow() is None
    assert project.events() == events


def test_the_comparison_is_an_artifact_of_the_run(project):
    from prefect.artifacts import Artifact

    assert run_flow() is None
    artifact = Artifact.get("comparison")
    assert artifact is not None
    assert "HiAR" in str(artifact.data)
    sheet = Artifact.get("contact-sheet")
    assert sheet is not None
    assert (project.folder / "reports" / "contact_sheet.png").as_uri() in str(sheet.data)


def test_a_mistake_is_not_repeated_and_stops_only_what_needs_it(project):
    project.order("distill-0-hiar", "say error: loss is nan", "exit 2")
    failure = run_flow()
    assert failure is not None
    assert (failure.stage, failure.code, str(failure)) == ("distill@0-hiar", 2, "distill@0-hiar: loss is nan")
    assert project.begun("distill-0-hiar") == 1
    assert project.begun("score") == 0
    assert [stage.name for stage in stale_stages(project.folder)] == ["distill@0-hiar", "score"]


def test_a_crash_is_tried_again(project):
    project.order("codec-0", "crash-once crashed")
    assert run_flow() is None
    assert project.begun("codec-0") == 2


def test_force_runs_every_stage_again(project):
    assert run_flow() is None
    assert run_flow(force=True) is None
    assert project.begun("codec-0") == project.begun("score") == 2

import pytest


@pytest.fixture(scope="module", autouse=True)
def untracked():
    """Stages without MLflow, which has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_TRACKING", "off")
        yield

import pytest
from vbench_toys import build_environment, lay_weights

from hiar.vbench.environment import find_environment


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The folder of a toy environment, which tests do not change."""
    return build_environment(tmp_path_factory.mktemp("toy") / "venv")


@pytest.fixture
def environment(toy):
    return find_environment(toy)


@pytest.fixture
def weights(tmp_path):
    return lay_weights(tmp_path / "weights")

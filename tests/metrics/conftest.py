from pathlib import Path

import pytest

from hiar.config import Params, ShapesWorld
from hiar.parameters import load_params


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture(scope="session")
def world(params: Params) -> ShapesWorld:
    return params.world

"""A Ray cluster of this machine that the tests of a module share."""

import importlib.util

import pytest

from etascope.engines.ray_cluster import connected


@pytest.fixture(scope="module")
def ray_connection():
    """This process is connected to a cluster of two CPUs on loopback."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'etascope[ray]'")
    with connected(None, 2):
        yield

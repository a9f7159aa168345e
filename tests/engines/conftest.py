"""A Ray cluster of this machine that the tests of a module share."""

import importlib.util

import pytest

from etascope.engines.ray_cluster import _token, connected


@pytest.fixture(scope="module")
def ray_connection():
    """This process is connected to a cluster of two CPUs on loopback."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'etascope[ray]'")
    with connected(None, 2):
        yield


@pytest.fixture
def as_the_cluster(monkeypatch):
    """Processes started from here are let into the cluster, as a user's who has its token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", _token())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 127.0.0.1 then means itself

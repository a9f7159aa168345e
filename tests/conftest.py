"""Fixtures that every test may use."""

from __future__ import annotations

import re

import pytest
from hypothesis import settings
from small import blobs_problem, line_problem

import etascope as es

# A shared machine stalls now and then; a timing is no behaviour.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture
def line() -> es.Problem:
    return line_problem()


@pytest.fixture
def blobs() -> es.Problem:
    return blobs_problem()


def pytest_make_parametrize_id(config, val, argname):
    """Names without addresses, so that tests have the same ones in every process."""
    text = repr(val)
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:100] if " at 0x" in text else None


@pytest.fixture(autouse=True)
def ends_of_ladders(monkeypatch):
    """No answer of any test may be resolved on the lowest or the highest rate that was tried."""
    from etascope.search import finding

    conclude = finding.conclude

    def checked(*args, **kwargs):
        found = conclude(*args, **kwargs)
        tried = [standing.lr for standing in found.rates]
        assert found.status != "resolved" or min(tried) < found.lr < max(tried)
        return found

    monkeypatch.setattr(finding, "conclude", checked)

"""Fixtures that every test may use."""

from __future__ import annotations

import pytest
from small import blobs_problem, line_problem

import etascope as es


@pytest.fixture
def line() -> es.Problem:
    return line_problem()


@pytest.fixture
def blobs() -> es.Problem:
    return blobs_problem()

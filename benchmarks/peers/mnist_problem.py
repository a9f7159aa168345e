"""The built-in experiment with less to evaluate: the benchmark times steps, not evaluations."""

from dataclasses import replace

import etascope as es
from etascope.problems.mnist_cnn import mnist_cnn


def problem() -> es.Problem:
    """Return mnist-cnn with the first 500 of its validation images, and without a test."""
    whole = mnist_cnn()
    return replace(whole, valid=tuple(t[:500] for t in whole.valid), test=None, name="mnist-steps")

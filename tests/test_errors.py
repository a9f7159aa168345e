"""An exception is told in one line, whatever its own methods do."""

import pytest
from small import line_problem

import etascope as es
from etascope.errors import text_of


class RaisingError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class OddError(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307


class LeavingError(Exception):
    def __str__(self):
        raise SystemExit(3)


TEXTS = {
    "raising": (RaisingError(), "RaisingError: (reading its text raised RuntimeError)"),
    "no string": (OddError(), "OddError: (reading its text raised TypeError)"),
    "leaving": (LeavingError(), "LeavingError: (reading its text raised SystemExit)"),
    "half a pair": (ValueError("a\udc80b"), "ValueError: a\\udc80b"),
    "lines": (ValueError("a\n b\tc"), "ValueError: a b c"),
    "nothing": (ValueError(), "ValueError:"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_text_of_any_exception_can_be_had(kind):
    error, text = TEXTS[kind]
    assert text_of(error) == text


def test_megabytes_of_text_are_cut():
    assert len(text_of(ValueError("x" * 10**7))) == 500


@pytest.mark.parametrize("kind", TEXTS)
def test_an_exception_without_a_text_ends_its_own_trial_only(kind, tmp_path):
    calls = []

    def loss(model, batch):
        calls.extend([None] * model.training)
        if len(calls) > 20:
            raise TEXTS[kind][0]
        return (model(batch[0]) - batch[1]).square().mean()

    study = es.sweep(line_problem(loss=loss), [0.1, 0.2], steps=30, out=tmp_path)
    assert [h.failure.cause for h in study.trials] == ["exception"] * 2
    assert study.trials[0].failure.message == TEXTS[kind][1]

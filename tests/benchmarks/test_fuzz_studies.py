"""A few hundred of the changes that the fuzzing script makes to the files of studies."""

import random

import fuzz_studies
import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return fuzz_studies.fuzz(300, 11, (0.05, 0.05), tmp_path_factory.mktemp("fuzz"))


def test_no_change_to_a_file_shows_another_number_or_raises_anything_but_a_sentence(found):
    assert found["first_failures"] == []
    assert sum(found["totals"].values()) == found["cases"] == 300


def test_changes_are_refused_and_what_they_leave_whole_is_shown(found):
    assert found["totals"]["refused"] > 100
    assert found["totals"]["shown"] > 30


def test_the_same_seed_makes_the_same_changes(tmp_path):
    made = []
    for name in ("first", "second"):
        path = tmp_path / name
        path.write_bytes(bytes(range(200)))
        change = fuzz_studies.of_bytes(path, random.Random("3 4"))
        made.append((change, path.read_bytes()))
    assert made[0] == made[1]

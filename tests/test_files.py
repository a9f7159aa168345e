"""What stands in the place of a file: nothing is followed, waited for, or read without a bound."""

import os
import socket

import pytest

from etascope.files import LARGEST, open_regular, read_regular, write_atomically


def place_nothing(path):
    pass


def place_link(path):
    target = path.with_name("target")
    target.write_text("another's")
    path.symlink_to(target)


def place_broken_link(path):
    path.symlink_to(path.with_name("nowhere"))


def place_folder(path):
    path.mkdir()


def place_pipe(path):
    os.mkfifo(path)


def place_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is at most a hundred characters long
        made.bind(path.name)
        os.chdir(here)


def place_holes(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACED = [place_link, place_broken_link, place_folder, place_pipe, place_socket, place_holes]


@pytest.mark.parametrize("place", [place_nothing, *PLACED])
def test_only_regular_files_are_read(tmp_path, place):
    place(tmp_path / "file")
    with pytest.raises(OSError, match=r"."):
        read_regular(tmp_path / "file")


@pytest.mark.parametrize("place", PLACED)
def test_only_regular_files_are_opened_to_append(tmp_path, place):
    place(tmp_path / "file")
    with pytest.raises(OSError, match=r"."):
        open_regular(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_read_up_to_a_bound(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_regular(path) == read_regular(path, most=4) == b"four"
    with pytest.raises(OSError, match="more than 3"):
        read_regular(path, most=3)
    assert LARGEST >= 1 << 20


@pytest.mark.parametrize("place", [place_link, place_broken_link])
def test_writing_replaces_a_link_and_leaves_what_it_names(tmp_path, place):
    path = tmp_path / "file"
    place(path)
    before = {p.name: p.read_text() for p in tmp_path.iterdir() if not p.is_symlink()}
    write_atomically(path, b"ours")
    assert not path.is_symlink()
    assert path.read_bytes() == b"ours"
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p != path} == before


def test_a_name_prepared_by_another_is_not_written_through(tmp_path):
    """The name in between used to end in the number of the process."""
    target = tmp_path / "theirs"
    target.write_text("theirs")
    (tmp_path / f".file.{os.getpid()}").symlink_to(target)
    write_atomically(tmp_path / "file", b"ours")
    assert target.read_text() == "theirs"


def test_an_atomic_write_leaves_old_content_where_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

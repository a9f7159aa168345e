"""IDX files: what is one comes back exactly, what is not one is a `DataError` and nothing else."""

import gzip
import os
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etascope.data.idx import _CHUNK, read_idx
from etascope.errors import DataError, UsageError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
FORMATS = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}
VALUES = {
    "u1": [0, 1, 128, 255],
    "i1": [-128, -1, 0, 127],
    "i2": [-32768, -2, 258, 32767],
    "i4": [-(2**31), -2, 0x01020304, 2**31 - 1],
    "f4": [-0.0, 1.5, -3.25e30, float("inf")],
    "f8": [-0.0, 1.5, -3.25e300, float("-inf")],
}
MIB = 1 << 20


def header(code: int, *shape: int) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape)


def encode(array: np.ndarray) -> bytes:
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    big = array.byteswap() if struct.pack("=H", 1) == struct.pack("<H", 1) else array
    return header(CODES[kind], *array.shape) + big.tobytes()


LABELS = header(0x08, 3) + b"\x07\x02\x01"  # 11 bytes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "some-idx3-ubyte"


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def fails(file: Path, content: bytes, offset: int, what: str, **options: int) -> None:
    """Check that the content is refused in one sentence with the file, the offset and a reason."""
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(file, **options)
    message = str(caught.value)
    assert message.startswith(f"{file}, byte {offset}: ")
    assert what in message
    assert message.endswith(".")
    assert "\n" not in message


def sound_or_refused(file: Path, content: bytes) -> bool:
    """Read arbitrary bytes: refuse them, or return what encodes to these very bytes."""
    file.write_bytes(content)
    try:
        array = read_idx(file)
    except DataError:
        return False
    packed = content[:2] == b"\x1f\x8b"
    assert encode(array) == (gzip.decompress(content) if packed else content)
    return True


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
@pytest.mark.parametrize("kind", CODES)
def test_each_type_comes_back_in_native_order(file: Path, kind: str, pack: type[bytes]) -> None:
    items = struct.pack(f">4{FORMATS[kind]}", *VALUES[kind])
    file.write_bytes(pack(header(CODES[kind], 2, 2) + items))
    array = read_idx(file)
    assert array.dtype == np.dtype(kind)
    assert array.dtype.isnative
    assert array.flags.writeable
    assert array.shape == (2, 2)
    np.testing.assert_array_equal(array.ravel(), np.array(VALUES[kind], dtype=kind))


@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=4, min_side=0, max_side=5))
    ),
    packed=st.booleans(),
)
@settings(deadline=None)
def test_round_trip(file: Path, array: np.ndarray, packed: bool) -> None:
    content = encode(array)
    file.write_bytes(gzip.compress(content) if packed else content)
    back = read_idx(file, max_bytes=len(content))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # bytes, so that NaNs count too


def test_files_longer_than_one_piece_come_back(file: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 700, 401), dtype=np.uint8)
    file.write_bytes(encode(array))
    np.testing.assert_array_equal(read_idx(file), array)
    file.write_bytes(gzip.compress(encode(array), 1))
    np.testing.assert_array_equal(read_idx(str(file)), array)


def test_highly_packed_files_come_back(file: Path) -> None:
    array = np.zeros((2, 2 * MIB), dtype=np.uint8)
    file.write_bytes(gzip.compress(encode(array)))
    np.testing.assert_array_equal(read_idx(file), array)


@pytest.mark.parametrize(
    ("content", "offset", "what"),
    [
        (b"", 0, "ends inside the magic number"),
        (b"\0\0\x08", 3, "ends inside the magic number"),
        (b"\0\x01" + LABELS[2:], 0, "not 00 01"),
        (b"PK\x03\x04" + LABELS, 0, "not 50 4b"),
        (b"\0\0\x0a" + LABELS[3:], 2, "0x0A"),
        (b"\0\0\x08\0", 3, "0 dimensions"),
        (header(0x08, *[1] * 33) + b"\0", 3, "33 dimensions"),
        (LABELS[:6], 6, "ends inside the sizes of its 1 dimensions"),
        (LABELS[:-1], 10, "declares 11 bytes"),
        (LABELS[:8], 8, "declares 11 bytes"),
        (LABELS + b"\0", 11, "bytes follow the payload"),
        (header(0x0E, 2) + b"\0" * 15, 23, "declares 24 bytes"),
        (header(0x08, 0, *[2**32 - 1] * 3), 4, "numpy cannot hold"),
    ],
)
def test_content_errors_name_the_offset_in_the_decompressed_stream(
    file: Path, content: bytes, offset: int, what: str
) -> None:
    fails(file, content, offset, what)
    fails(file, gzip.compress(content), offset, what)


def test_as_many_dimensions_as_numpy_holds(file: Path) -> None:
    file.write_bytes(header(0x08, *[1] * 32) + b"\x05")
    assert read_idx(file).shape == (1,) * 32


def test_gzip_damage_is_told_apart(file: Path) -> None:
    packed = gzip.compress(LABELS)
    fails(file, packed[:-1], 11, "cut off")
    fails(file, packed[:10], 0, "cut off")
    fails(file, packed + b"\0", 11, "bytes follow the end of the gzip member")
    fails(file, packed + packed, 11, "bytes follow the end of the gzip member")
    fails(file, gzip.compress(LABELS[:4]) + gzip.compress(LABELS[4:]), 4, "end of the gzip member")
    wrong_sum = bytearray(packed)
    wrong_sum[-8] ^= 1
    fails(file, bytes(wrong_sum), 8, "incorrect data check")
    wrong_length = bytearray(packed)
    wrong_length[-4] ^= 1
    fails(file, bytes(wrong_length), 8, "incorrect length check")


def test_garbage_after_a_long_gzip_member(file: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, 1 << 18, dtype=np.uint8)
    packed = gzip.compress(encode(array), 0)
    for extra in (1, 1 << 18):
        fails(file, packed + b"\0" * extra, array.size + 8, "end of the gzip member")


@pytest.mark.parametrize("length", [_CHUNK - 2, _CHUNK, _CHUNK + 2])
def test_garbage_after_a_member_that_ends_with_a_piece_of_the_file(file: Path, length: int) -> None:
    packed = gzip.compress(LABELS)
    name = b"n" * (length - len(packed) - 1) + b"\0"  # gzip may carry a file name of any length
    padded = packed[:3] + b"\x08" + packed[4:10] + name + packed[10:]
    assert len(padded) == length
    assert sound_or_refused(file, padded)
    fails(file, padded + b"\0", 11, "end of the gzip member")


def test_the_cap_counts_the_declared_bytes(file: Path) -> None:
    file.write_bytes(LABELS)
    assert read_idx(file, max_bytes=11).tolist() == [7, 2, 1]
    fails(file, LABELS, 8, "declares 11 bytes in all, more than the 10 allowed", max_bytes=10)
    fails(file, header(0x0E, *[2**32 - 1] * 4), 20, f"declares {8 * (2**32 - 1) ** 4 + 20} bytes")
    fails(file, header(0x08, 1 << 30), 8, "more than the 1073741824 allowed")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(path: Path, what: str) -> None:
        with pytest.raises(DataError) as caught:
            read_idx(path)
        shown = str(path).replace("\0", "\\x00")
        assert str(caught.value).startswith(f"{shown}, byte 0: ")
        assert what in str(caught.value)

    refused(tmp_path / "none", "No such file")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "nul\0name", "cannot be opened")
    refused(tmp_path / ("n" * 300), "cannot be opened")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(loop, "cannot be opened")
    assert issubclass(DataError, UsageError)


def test_no_permission(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(LABELS)
    file.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(DataError, match=r"byte 0: .*Permission denied"):
            read_idx(file)
    finally:
        os.seteuid(user)
    file.chmod(stat.S_IRUSR)
    assert read_idx(file).tolist() == [7, 2, 1]


def test_a_disk_that_fails_midway(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self) -> None:
            self.pieces = [LABELS[:2], LABELS[2:9]]

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, limit: int) -> bytes:
            if not self.pieces:
                raise OSError(5, "Input/output error")
            piece = self.pieces.pop(0)
            if len(piece) > limit:
                self.pieces.insert(0, piece[limit:])
            return piece[:limit]

    file.write_bytes(LABELS)
    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(DataError, match=r"byte 9: reading failed \(Input/output error\)"):
        read_idx(file)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
def test_memory_does_not_follow_the_header(file: Path, pack: type[bytes]) -> None:
    allowed = header(0x08, (1 << 30) - 8) + b"\0" * 100
    file.write_bytes(pack(allowed))
    with peak_below(2 * MIB), pytest.raises(DataError, match="byte 108: the file ends here"):
        read_idx(file)
    file.write_bytes(pack(header(0x0E, *[2**32 - 1] * 3)))
    with peak_below(2 * MIB), pytest.raises(DataError, match="allowed"):
        read_idx(file)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (header(0x08, 10), "byte 18: bytes follow the payload"),
        (header(0x08, (1 << 31) - 1), "byte 8: .* allowed"),
        (b"", "byte 3: 0 dimensions"),
        (b"\0\0\x08\xff", "byte 3: 255 dimensions"),
    ],
)
def test_a_gzip_bomb_is_not_expanded(file: Path, start: bytes, what: str) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with file.open("wb") as out:
        out.write(packer.compress(start if start else b"\0\0\x08\0"))
        for _ in range(64):
            out.write(packer.compress(bytes(MIB)))
        out.write(packer.flush())
    with peak_below(2 * MIB), pytest.raises(DataError, match=what):
        read_idx(file)


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_memory_of_a_sound_file_is_little_more_than_its_array(file: Path, packed: bool) -> None:
    array = np.random.default_rng(2).normal(size=MIB)
    file.write_bytes(gzip.compress(encode(array), 1) if packed else encode(array))
    with peak_below(array.nbytes * 5 // 4 + 2 * MIB):
        back = read_idx(file)
    np.testing.assert_array_equal(back, array)


HEADS = st.builds(
    lambda code, shape: header(code, *shape),
    st.sampled_from(sorted(CODES.values())),
    st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), max_size=4),
)


@given(content=st.binary(max_size=64) | st.builds(bytes.__add__, HEADS, st.binary(max_size=64)))
@example(content=LABELS)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_sound_or_refused(file: Path, content: bytes) -> None:
    accepted = sound_or_refused(file, content)
    assert sound_or_refused(file, gzip.compress(content)) == accepted
    sound_or_refused(file, b"\x1f\x8b\x08" + content)
    if content == LABELS:
        assert accepted


VALID = [encode(np.arange(24, dtype=kind).reshape(2, 3, 4)) for kind in CODES]
SOUND = VALID + [gzip.compress(content, level) for content in VALID for level in (0, 9)]


@given(
    content=st.sampled_from(SOUND),
    edits=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 2), st.binary(max_size=3)), max_size=4
    ),
    packed=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_edited_files_are_sound_or_refused(
    file: Path, content: bytes, edits: list[tuple[int, int, bytes]], packed: bool
) -> None:
    edited = content
    for where, dropped, inserted in edits:
        at = where % (len(edited) + 1)
        edited = edited[:at] + inserted + edited[at + dropped :]
    accepted = sound_or_refused(file, edited)
    if edited == content:
        assert accepted
    if packed:
        sound_or_refused(file, gzip.compress(edited))


@given(content=st.sampled_from(SOUND), data=st.data())
@settings(deadline=None, max_examples=200)
def test_shortened_and_lengthened_files_are_refused(
    file: Path, content: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(content) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=9))
    assert sound_or_refused(file, content)
    assert not sound_or_refused(file, content[:cut])
    assert not sound_or_refused(file, content + extra)
    assert not sound_or_refused(file, gzip.compress(content[:cut]))
    assert not sound_or_refused(file, gzip.compress(content + extra))

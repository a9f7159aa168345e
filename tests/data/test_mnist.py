"""MNIST: the bundled files are the pinned ones, and another directory must fit as they do."""

import gzip
import hashlib
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from etascope.data import mnist
from etascope.data.mnist import SHA256, Mnist, load_mnist
from etascope.errors import DataError

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
BUNDLED = Path(mnist.__file__).with_name("mnist")


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.tobytes()


def small() -> dict[str, np.ndarray]:
    """Return a data set of 5 and 3 images of 4 by 6 pixels."""
    rng = np.random.default_rng(0)
    shapes = [(5, 4, 6), (5,), (3, 4, 6), (3,)]
    return {
        name: rng.integers(0, 256, shape, dtype=np.uint8)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in small().items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.fixture
def bundled_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        shutil.copy(BUNDLED / f"{name}.gz", tmp_path)
    monkeypatch.setattr(mnist, "_BUNDLED", tmp_path)
    return tmp_path


def refused(folder: Path, named: Path | str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        load_mnist(folder)
    assert str(named) in str(caught.value)
    assert what in str(caught.value)
    assert str(caught.value).endswith(".")


def test_bundled_files() -> None:
    data = load_mnist()
    assert data._fields == ("train_images", "train_labels", "test_images", "test_labels")
    assert [array.shape for array in data] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    assert all(array.dtype == np.uint8 for array in data)
    assert np.bincount(data.train_labels).tolist() == TRAIN_COUNTS
    assert np.bincount(data.test_labels).tolist() == TEST_COUNTS
    assert data.train_images.mean() == pytest.approx(0.1306604762738429 * 255, rel=1e-12)
    assert data.train_images.max() == 255


@pytest.mark.parametrize("name", NAMES)
def test_the_pinned_sums_are_those_of_the_raw_files(name: str) -> None:
    raw = gzip.decompress((BUNDLED / f"{name}.gz").read_bytes())
    assert hashlib.sha256(raw).hexdigest() == SHA256[name]
    assert f"| `{name}` | `{SHA256[name]}` |" in (BUNDLED / "NOTICE.md").read_text()


def test_the_names_and_their_order() -> None:
    assert list(SHA256) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_bundled_file_is_compared_with_its_own_sum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHA256, name, "0" * 64)
    with pytest.raises(DataError, match=f"{name}.gz, from byte 0: .* SHA-256 .* not 0{{64}};"):
        load_mnist()


def test_one_changed_label_breaks_the_sum(bundled_copy: Path) -> None:
    file = bundled_copy / f"{TEST_LABELS}.gz"
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[-1] ^= 1
    file.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(
        DataError, match=f"{hashlib.sha256(raw).hexdigest()}, not {SHA256[TEST_LABELS]}"
    ):
        load_mnist()
    load_mnist(bundled_copy)  # a directory that the caller names is not held to the sums


def test_bundled_labels_declared_signed_are_refused(bundled_copy: Path) -> None:
    file = bundled_copy / f"{TEST_LABELS}.gz"
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[2] = 0x09
    file.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match=TEST_LABELS):
        load_mnist()


def test_each_bundled_file_is_decompressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = zlib.decompressobj

    def counted(wbits: int) -> object:
        started.append(wbits)
        return real(wbits)

    monkeypatch.setattr(zlib, "decompressobj", counted)
    load_mnist()
    assert len(started) == 4


def test_torch_is_not_imported() -> None:
    code = "import sys, etascope.data.mnist as m; m.load_mnist(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def check_small(data: Mnist) -> None:
    for array, wanted in zip(data, small().values(), strict=True):
        np.testing.assert_array_equal(array, wanted)
        assert array.dtype == np.uint8


def test_a_directory_raw_packed_and_mixed(folder: Path) -> None:
    check_small(load_mnist(folder))
    for name in NAMES:
        file = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        check_small(load_mnist(str(folder)))


def test_the_raw_file_is_taken_where_both_are_there(folder: Path) -> None:
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(b"not read")
    check_small(load_mnist(folder))


def test_a_missing_directory_says_what_was_looked_for(tmp_path: Path) -> None:
    for name in NAMES:
        refused(tmp_path / "none", tmp_path / "none", f"{name}[.gz]")
    (tmp_path / "plain").touch()
    refused(tmp_path / "plain", tmp_path / "plain", "no readable directory")


def test_missing_files_are_all_named_and_only_they(folder: Path) -> None:
    (folder / TRAIN_LABELS).unlink()
    (folder / TEST_IMAGES).unlink()
    refused(folder, folder, f"looked there for {TRAIN_LABELS}[.gz], {TEST_IMAGES}[.gz].")


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_named_with_the_offset(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    refused(folder, folder / name, f"byte {len(whole) - 1}: the file ends here")
    (folder / name).unlink()
    (folder / f"{name}.gz").write_bytes(gzip.compress(whole)[:-1])
    refused(folder, folder / f"{name}.gz", f"byte {len(whole)}: the gzip data is cut off")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_type_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(idx(small()[name], code=0x09))
    refused(folder, f"{folder / name}, byte 2", "must be ubyte (0x08), not int8")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_other_dimensions_is_named(folder: Path, name: str) -> None:
    array = small()[name]
    (folder / name).write_bytes(idx(array[..., None]))
    refused(folder, f"{folder / name}, byte 3", f"not {array.ndim + 1}")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_file_of_the_right_kind_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(idx(small()[name][:0]))
    refused(folder, f"{folder / name}, byte 4", "are empty")


def test_images_without_pixels_are_refused(folder: Path) -> None:
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        (folder / name).write_bytes(idx(small()[name][:, :, :0]))
    refused(folder, folder / TRAIN_IMAGES, "(5, 4, 0) are empty")


@pytest.mark.parametrize(
    ("images", "labels"), [(TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)]
)
def test_counts_that_differ_are_refused(folder: Path, images: str, labels: str) -> None:
    array = small()[labels]
    for wrong in (array[:-1], np.append(array, array[:1])):
        (folder / labels).write_bytes(idx(wrong))
        refused(folder, folder / labels, f"{len(wrong)} labels do not fit the {len(array)} images")


def test_image_shapes_that_differ_are_refused(folder: Path) -> None:
    turned = np.ascontiguousarray(small()[TEST_IMAGES].transpose(0, 2, 1))
    (folder / TEST_IMAGES).write_bytes(idx(turned))
    refused(folder, f"{folder / TEST_IMAGES}, byte 8", "(6, 4) pixels do not fit the (4, 6)")

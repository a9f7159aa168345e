"""Loads MNIST, from the files in this package or from a directory of files named as they are.

Axis order: images are [N, H, W], labels are [N].
"""

import hashlib
import os.path
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from etascope.data.idx import read_idx
from etascope.errors import DataError

SHA256: dict[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four names, in the order of `Mnist`, and the SHA-256 of each file of MNIST decompressed."""

_BUNDLED = Path(__file__).with_name("mnist")


class Mnist(NamedTuple):
    """The four arrays of MNIST, or of a data set that takes its place."""

    train_images: npt.NDArray[np.uint8]
    """[N, H, W], 0 is background and 255 full ink."""
    train_labels: npt.NDArray[np.uint8]
    """[N]"""
    test_images: npt.NDArray[np.uint8]
    """[N, H, W], of the same H and W as the training images."""
    test_labels: npt.NDArray[np.uint8]
    """[N]"""


def load_mnist(directory: str | Path | None = None) -> Mnist:
    """Load the bundled MNIST, or four IDX files of the same names from a directory.

    Args:
        directory: Where the four files named in `SHA256` lie, each raw or with `.gz` added (raw
            is taken where both are there); None is the bundled MNIST, whose sums are verified.

    Returns:
        The arrays: uint8, never empty, as many labels as images in either part.

    Raises:
        DataError: A file is missing, is no sound IDX file, does not fit the other three, or is a
            bundled one with a wrong sum; the message names the file.

    Example:
        >>> data = load_mnist()
        >>> data.train_images.shape, data.test_images.shape
        ((60000, 28, 28), (10000, 28, 28))
        >>> data.train_labels[:5]
        array([5, 0, 4, 1, 9], dtype=uint8)
    """
    paths = _find(_BUNDLED if directory is None else Path(directory))
    arrays = [read_idx(path) for path in paths]
    _check_fit(paths, arrays)
    if directory is None:
        for path, array, pinned in zip(paths, arrays, SHA256.values(), strict=True):
            _check_sum(path, array, pinned)
    return Mnist(*arrays)


def _find(directory: Path) -> list[Path]:
    """Return the paths of the four files, in the order of `SHA256`."""
    if not os.path.isdir(directory):
        raise DataError(f"{directory} is no readable directory; looked there for {_names(SHA256)}.")
    found = [
        next((path for path in _candidates(directory, name) if os.path.lexists(path)), None)
        for name in SHA256
    ]
    missing = [name for name, path in zip(SHA256, found, strict=True) if path is None]
    if missing:
        raise DataError(f"{directory} lacks files of MNIST: looked there for {_names(missing)}.")
    return [path for path in found if path is not None]


def _candidates(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / name, directory / f"{name}.gz"


def _names(names: list[str] | dict[str, str]) -> str:
    return ", ".join(f"{name}[.gz]" for name in names)


def _check_sum(path: Path, array: npt.NDArray[Any], pinned: str) -> None:
    """Compare the sum of the decompressed file, which an accepted ubyte array determines."""
    content = hashlib.sha256(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape))
    content.update(array.data)
    if content.hexdigest() != pinned:
        raise DataError(
            f"{path}, from byte 0: the decompressed file has the SHA-256 {content.hexdigest()}, "
            f"not {pinned}; install etascope again."
        )


def _check_fit(paths: list[Path], arrays: list[npt.NDArray[Any]]) -> None:
    """Check what the four files must be, each alone first, then together."""
    for path, array, ndim in zip(paths, arrays, (3, 1, 3, 1), strict=True):
        kind = "images" if ndim == 3 else "labels"
        if array.dtype != np.uint8:
            raise DataError(f"{path}, byte 2: {kind} must be ubyte (0x08), not {array.dtype}.")
        if array.ndim != ndim:
            raise DataError(
                f"{path}, byte 3: {kind} must have {ndim} dimension(s), not {array.ndim}."
            )
        if array.size == 0:
            raise DataError(f"{path}, byte 4: {kind} of the shape {array.shape} are empty.")
    for part in (0, 2):
        images, labels = len(arrays[part]), len(arrays[part + 1])
        if images != labels:
            raise DataError(
                f"{paths[part + 1]}, byte 4: {labels} labels do not fit "
                f"the {images} images of {paths[part].name}."
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{paths[2]}, byte 8: images of {arrays[2].shape[1:]} pixels do not fit "
            f"the {arrays[0].shape[1:]} of {paths[0].name}."
        )

"""Fashion-MNIST: the whole set from IDX files, and the slice that ships with the package."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
SLICE = Path(__file__).parent / "zoo" / "fashion-mnist-test-1000.npz"

# Mean and standard deviation of the 60,000 training images, pixels in 0..1.
MEAN, STD = 0.2860, 0.3530
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
CLASSES = len(CLASS_NAMES)

_UNSIGNED_BYTE = 0x08
_MOST_BYTES = 1 << 28  # the largest file unpacks to 47 MB


class DataError(ValueError):
    """A data file is missing or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images: ``pixels (n, 28, 28)`` and ``labels (n,)``, both uint8."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def preprocess(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn ``(n, 28, 28)`` bytes into the models' input ``(n, 1, 28, 28)``."""
    scaled = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled[:, None], dtype=np.float32)


def load_fashion_mnist(folder: Path = DEFAULT_FOLDER, *, train: bool) -> Images:
    """Read the 60,000 training or the 10,000 test images.

    Raises:
        DataError: a file is missing, cut short or of another kind.
    """
    prefix = "train" if train else "t10k"
    pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", rank=3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", rank=1)
    if len(pixels) != len(labels):
        raise DataError(f"{folder}: {len(pixels)} images but {len(labels)} labels")
    if pixels.shape[1:] != (28, 28):
        raise DataError(f"{folder}: images of {pixels.shape[1:]} pixels, expected (28, 28)")
    if not len(labels) or labels.max() >= CLASSES:
        found = f"a label {labels.max()}" if len(labels) else "no images"
        raise DataError(f"{folder}: {found}, expected images of classes 0 to {CLASSES - 1}")
    return Images(pixels, labels)


def load_slice() -> Images:
    """Read the first 1,000 test images, which ship with the package (MIT licence, Zalando SE)."""
    with np.load(SLICE, allow_pickle=False) as arrays:
        return Images(arrays["pixels"], arrays["labels"])


def _read_idx(path: Path, *, rank: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes; its header is checked before its size is believed."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing; install Debian's package dataset-fashion-mnist, "
            "or name the folder of the four IDX files with --data"
        )
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, rank)):
        raise DataError(f"{path} is not an IDX file of bytes with {rank} dimensions")
    shape = struct.unpack(f">{rank}I", content[4:header])
    if math.prod(shape) != len(content) - header:
        raise DataError(f"{path} holds {len(content) - header} bytes, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

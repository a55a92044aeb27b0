from __future__ import annotations

import gzip
import struct

import pytest
import torch

from weightspace.data import load_slice


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def write_idx(path, array):
    """Write bytes as a gzipped IDX file: two zeros, the type, the rank, the shape, the bytes."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


@pytest.fixture
def idx_folder(tmp_path):
    """Make a folder of the four files, each of the 1,000 images that ship with the package."""
    images, folder = load_slice(), tmp_path / "data"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images.pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", images.labels)
    return folder

from __future__ import annotations

import gzip
import os
import struct

import pytest
import torch

from weightspace import corpora
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


@pytest.fixture(scope="session")
def english():
    """Need the Debian packages that texts are read from."""
    packages = {
        "wordnet-base": corpora.WORDNET / "data.noun",
        **{
            f"dict-{name}": corpora.DICTIONARIES / f"{name}.dict.dz"
            for name in ("foldoc", "jargon", "gcide")
        },
    }
    missing = [package for package, path in packages.items() if not path.is_file()]
    if missing:
        reason = f"apt-get install {' '.join(missing)}"
        if os.environ.get("WEIGHTSPACE_TEXTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)


SPEECH = (
    "Fellow citizens, the winter has been long. We have built roads and schools. What remains is "
    "work! “It can be done,” a farmer wrote to me. I believe him. Let us begin."
)


@pytest.fixture
def npm(tmp_path):
    """Make a folder as npm leaves it, with texts of a few sentences."""
    speech = tmp_path / "npm" / corpora.SPEECHES / "1901_somebody.txt"
    novel = tmp_path / "npm" / corpora.NOVEL
    for path in (speech, novel):
        path.parent.mkdir(parents=True)
        path.write_text(SPEECH)
    return tmp_path / "npm"

from __future__ import annotations

import gzip
import re
import struct

import numpy as np
import pytest

from tests.weightspace.conftest import write_idx
from weightspace.data import (
    DEFAULT_FOLDER,
    MEAN,
    STD,
    DataError,
    load_fashion_mnist,
    load_slice,
    preprocess,
)

needs_the_data_set = pytest.mark.skipif(
    not DEFAULT_FOLDER.is_dir(), reason=f"the data set is not in {DEFAULT_FOLDER}"
)


def test_preprocessing_maps_bytes_to_zero_mean_and_unit_deviation():
    pixels = np.zeros((2, 28, 28), np.uint8)
    pixels[0, 3, 5], pixels[1, 27, 0] = 255, 51
    x = preprocess(pixels)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((2, 1, 28, 28), np.float32, True)
    assert x[0, 0, 3, 5] == pytest.approx((1 - 0.2860) / 0.3530, rel=1e-6)
    assert x[1, 0, 27, 0] == pytest.approx((0.2 - 0.2860) / 0.3530, rel=1e-6)
    rest = np.delete(x.ravel(), [3 * 28 + 5, 28 * 28 + 27 * 28])
    assert np.unique(rest) == pytest.approx([-0.2860 / 0.3530], rel=1e-6)


@needs_the_data_set
def test_mean_and_deviation_are_those_of_the_training_images():
    pixels = load_fashion_mnist(train=True).pixels
    counts = np.bincount(pixels.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = (counts * values).sum() / counts.sum()
    std = np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
    assert mean == pytest.approx(MEAN, abs=5e-5)
    assert std == pytest.approx(STD, abs=5e-5)


def test_the_slice_holds_a_thousand_images_of_ten_classes():
    images = load_slice()
    assert (images.pixels.shape, images.pixels.dtype) == ((1000, 28, 28), np.uint8)
    assert (images.labels.shape, images.labels.dtype) == ((1000,), np.uint8)
    assert set(images.labels.tolist()) == set(range(10))
    assert np.bincount(images.labels).min() > 50
    assert len({image.tobytes() for image in images.pixels}) == 1000


@needs_the_data_set
def test_the_slice_is_the_start_of_the_test_set():
    images, test = load_slice(), load_fashion_mnist(train=False)
    assert len(test.labels) == 10_000
    assert np.array_equal(images.pixels, test.pixels[:1000])
    assert np.array_equal(images.labels, test.labels[:1000])


@needs_the_data_set
def test_the_training_set_holds_six_thousand_images_of_each_class():
    training = load_fashion_mnist(train=True)
    assert training.pixels.shape == (60_000, 28, 28)
    assert np.bincount(training.labels).tolist() == [6000] * 10


@pytest.mark.parametrize("train", [True, False])
def test_idx_files_are_read_in_order(tmp_path, train):
    generator = np.random.default_rng(0)
    for prefix, n in (("train", 4), ("t10k", 3)):
        pixels = generator.integers(0, 256, (n, 28, 28), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
        if train == (prefix == "train"):
            expected = pixels
    images = load_fashion_mnist(tmp_path, train=train)
    assert np.array_equal(images.pixels, expected)
    assert images.labels.tolist() == list(range(len(expected)))


# ---- refusals ---------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def refusal(text, *, exact=True):
    end = "$" if exact else ""
    return pytest.raises(DataError, match=f"^{re.escape(text)}{end}")


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_missing_file_names_the_package_that_brings_it(idx_folder, name):
    (idx_folder / name).unlink()
    with refusal(
        f"{idx_folder / name} is missing; install Debian's package dataset-fashion-mnist, "
        "or name the folder of the four IDX files with --data"
    ):
        load_fashion_mnist(idx_folder, train=True)
    assert len(load_fashion_mnist(idx_folder, train=False).labels) == 1000


def damaged(path, content):
    path.write_bytes(content)
    return refusal(f"{path} is not a whole gzip file (", exact=False)


def test_a_file_that_is_no_gzip_is_refused(idx_folder):
    path = idx_folder / LABELS
    with damaged(path, gzip.decompress(path.read_bytes())):
        load_fashion_mnist(idx_folder, train=True)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_gzip_file_that_is_cut_short_is_refused(idx_folder, share):
    path = idx_folder / IMAGES
    whole = path.read_bytes()
    with damaged(path, whole[: int(share * len(whole))]):
        load_fashion_mnist(idx_folder, train=True)


def test_a_gzip_file_whose_last_byte_is_missing_is_refused(idx_folder):
    path = idx_folder / IMAGES
    with damaged(path, path.read_bytes()[:-1]):
        load_fashion_mnist(idx_folder, train=True)


def test_a_gzip_file_with_a_wrong_byte_inside_is_refused(idx_folder):
    path = idx_folder / IMAGES
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    with damaged(path, bytes(content)):
        load_fashion_mnist(idx_folder, train=True)


def test_a_gzip_file_with_an_impossible_block_is_refused(idx_folder):
    path = idx_folder / IMAGES
    content = bytearray(path.read_bytes())
    content[10] |= 0b110  # the two bits after the first say how the block is packed; 11 is not used
    with damaged(path, bytes(content)):
        load_fashion_mnist(idx_folder, train=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes((0, 0, 8)),
        bytes((0, 0, 8, 3)) + bytes(11),  # the header ends before the last dimension
        bytes((0, 0, 13, 3)) + struct.pack(">3I", 1, 28, 28) + bytes(784 * 4),  # floats
        bytes((0, 0, 8, 1)) + struct.pack(">I", 784) + bytes(784),  # labels
        bytes((1, 0, 8, 3)) + struct.pack(">3I", 1, 28, 28) + bytes(784),
    ],
    ids=["empty", "three bytes", "half a header", "floats", "another rank", "no magic"],
)
def test_another_magic_number_is_refused(idx_folder, content):
    path = idx_folder / IMAGES
    path.write_bytes(gzip.compress(content))
    with refusal(f"{path} is not an IDX file of bytes with 3 dimensions"):
        load_fashion_mnist(idx_folder, train=True)


@pytest.mark.parametrize("images", [2, 4, 2**32 - 1])
def test_a_header_that_does_not_fit_its_bytes_is_refused(idx_folder, images):
    path = idx_folder / IMAGES
    header = struct.pack(">4B3I", 0, 0, 8, 3, images, 28, 28)
    path.write_bytes(gzip.compress(header + bytes(3 * 784)))
    with refusal(f"{path} holds 2352 bytes, its header says ({images}, 28, 28)"):
        load_fashion_mnist(idx_folder, train=True)


def test_as_many_labels_as_images_are_needed(idx_folder):
    write_idx(idx_folder / LABELS, load_slice().labels[:999])
    with refusal(f"{idx_folder}: 1000 images but 999 labels"):
        load_fashion_mnist(idx_folder, train=True)


def test_images_of_another_size_are_refused(idx_folder):
    write_idx(idx_folder / IMAGES, np.zeros((1000, 32, 32), np.uint8))
    with refusal(f"{idx_folder}: images of (32, 32) pixels, expected (28, 28)"):
        load_fashion_mnist(idx_folder, train=True)


def test_a_label_of_no_class_is_refused(idx_folder):
    labels = load_slice().labels.copy()
    labels[500] = 10
    write_idx(idx_folder / LABELS, labels)
    with refusal(f"{idx_folder}: a label 10, expected images of classes 0 to 9"):
        load_fashion_mnist(idx_folder, train=True)


def test_files_without_images_are_refused(idx_folder):
    write_idx(idx_folder / IMAGES, np.zeros((0, 28, 28), np.uint8))
    write_idx(idx_folder / LABELS, np.zeros(0, np.uint8))
    with refusal(f"{idx_folder}: no images, expected images of classes 0 to 9"):
        load_fashion_mnist(idx_folder, train=True)

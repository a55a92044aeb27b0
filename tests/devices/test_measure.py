from __future__ import annotations

from pathlib import Path

import pytest

from devices.measure import Candidate, measure
from export.errors import BadFileError
from export.records import TensorSpec
from runtimes.bench import BRIEF
from tests.runtimes.models import matmul, random_weight, save
from tests.runtimes.tflite_models import linear

SPECS = (TensorSpec("x", "float32", ("batch", 6)),)


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="/proc/self/smaps_rollup is not there"
)
def test_artifacts_of_two_formats_are_measured_side_by_side(tmp_path):
    weight = random_weight(4, 6)
    candidates = {
        "onnx": Candidate(save(matmul(weight.T.copy()), tmp_path / "net.onnx")),
        "tflite": Candidate(linear(tmp_path / "net.tflite", weight)),
    }
    measured = measure(candidates, SPECS, axis="batch", sizes=(1, 4), budget=BRIEF)
    assert measured.keys() == candidates.keys()
    for one in measured.values():
        assert one.latency_ms_by_size.keys() == {1, 4}
        assert one.memory.settled_rss_bytes > 0


def test_an_artifact_of_no_known_format_is_refused(tmp_path):
    path = tmp_path / "net.bin"
    path.write_bytes(b"x")
    with pytest.raises(BadFileError, match=r"net\.bin is of no format that can be run here"):
        measure({"a": Candidate(path)}, SPECS, axis="batch", sizes=(1,), budget=BRIEF)

from __future__ import annotations

import json

import pytest

from tests.export.tflite_files import FILES, Writer, weights


def test_audit_of_a_tflite_file(cli, tmp_path):
    tied = cli("audit", FILES["tied"]().save(tmp_path / "tied.tflite"))
    assert (tied.code, "1.00x of the unique bytes" in tied.out) == (0, True)
    assert "FULLY_CONNECTED (identity), BATCH_MATMUL (transpose)" in tied.out
    path = FILES["duplicated"]().save(tmp_path / "duplicated.tflite")
    naive = cli("audit", path)
    assert (naive.code, "stored twice: wt is w (transpose)" in naive.out) == (1, True)
    listed = json.loads(cli("audit", path, "--json").out)
    assert (listed["ratio"], [d["view"] for d in listed["duplicates"]]) == (2.0, ["transpose"])


def test_names_are_shown_as_they_are(cli, tmp_path):
    writer = Writer()
    for name in ("[/red]", "a\x1b[31mb"):
        writer.graph.outputs.append(writer.constant(weights(8, 8), name=name))
    outcome = cli("audit", writer.save(tmp_path / "m.tflite"))
    assert "stored twice: a?[31mb is [/red] (identity)" in outcome.out
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize("name", ["model.tflite", "model.bin"])
def test_a_file_of_another_kind(cli, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"something else")
    outcome = cli("audit", path)
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert name in outcome.error_lines[0]
    assert ".tflite" in outcome.error_lines[0]

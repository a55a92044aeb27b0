import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.report.json_form import read_json, report_from_dict, report_to_dict, write_json
from export.errors import BadFileError, OutputError
from runtimes.records import Latency, Memory
from tests.devices.report.reports import with_result

numbers = st.floats(allow_nan=False)
counts = st.integers(min_value=0, max_value=2**62)
latencies = st.builds(
    Latency,
    runs=counts, warmup=counts, first=numbers, min=numbers, p50=numbers, p90=numbers, p95=numbers,
    p99=st.none() | numbers, mean=numbers, std=numbers, samples=st.lists(numbers).map(tuple),
)  # fmt: skip
signed = st.integers(min_value=-(2**62), max_value=2**62)
memories = st.builds(
    Memory,
    baseline_rss_bytes=counts, loaded_rss_bytes=counts, settled_rss_bytes=counts,
    peak_rss_bytes=counts, anonymous_bytes=signed, file_bytes=signed,
    weights_resident_bytes=signed,
)  # fmt: skip


DATA = Path(__file__).parents[2] / "data"


def change(report, **changes):
    first, *others = report.variants
    variants = (dataclasses.replace(first, **changes), *others)
    return dataclasses.replace(report, variants=variants)


def test_a_report_comes_back_from_a_file(report, tmp_path):
    path = tmp_path / "report.json"
    write_json(report, path)
    assert read_json(path) == report
    assert json.loads(path.read_text(encoding="utf-8")) == report_to_dict(report)


def test_sizes_are_whole_numbers_again(report):
    back = report_from_dict(json.loads(json.dumps(report_to_dict(report))))
    assert list(back.runs[0].results["onnx naive"].latency_ms_by_size) == [1, 2, 4, 8, 16]


def test_samples_stand_on_one_line(report, tmp_path):
    path = tmp_path / "report.json"
    write_json(report, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum('"samples": [' in line and line.rstrip(",").endswith("]") for line in lines) == 15
    assert len(lines) < 600


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    latency=st.dictionaries(counts, latencies, max_size=3),
    memory=st.none() | memories,
    accuracy=st.none() | numbers,
    load_ms=st.none() | numbers,
    name=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_nothing_is_lost(report, tmp_path, latency, memory, accuracy, load_ms, name):
    changed = change(
        report,
        accuracy=accuracy,
        form=name,
    )
    figures = {"latency_ms_by_size": latency, "memory": memory, "load_ms": load_ms, "invalid": name}
    changed = with_result(changed, 0, "onnx naive", **figures)
    path = tmp_path / "report.json"
    write_json(changed, path)
    assert read_json(path) == changed


def test_not_a_number_survives(report):
    parity = dataclasses.replace(report.variants[0].parity, cosine=math.nan)
    text = json.dumps(report_to_dict(change(report, parity=parity)), allow_nan=False)
    assert math.isnan(report_from_dict(json.loads(text)).variants[0].parity.cosine)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (4, "has schema 4, and this version reads schema 3; update weightspace"),
        (0, "has schema 0; it must be 1, 2 or 3"),
        (True, "has schema True; it must be 1, 2 or 3"),
        ("1", "has schema '1'; it must be 1, 2 or 3"),
    ],
)
def test_another_schema_is_refused(schema, message, report):
    data = report_to_dict(report) | {"schema": schema}
    with pytest.raises(BadFileError, match=message):
        report_from_dict(data)


def recorded(schema):
    """A report that an earlier version wrote of a small net, with nothing changed in it."""
    return json.loads((DATA / f"report-schema-{schema}.json").read_text())


@pytest.mark.parametrize("schema", [1, 2])
def test_a_report_of_an_older_schema_is_read_and_written_anew(schema, tmp_path):
    old = recorded(schema)
    report = read_json(DATA / f"report-schema-{schema}.json")
    (run,) = report.runs
    assert (run.device, run.kind, run.threads) == ("local", "measured", old["threads"])
    assert run.measured_on == old["measured_on"]
    assert run.environment.cpu == old["environment"]["cpu"]
    assert report.created == run.created == old["created"]
    assert list(run.results) == [variant.id for variant in report.variants]
    for variant, before in zip(report.variants, old["variants"], strict=True):
        assert variant.file_bytes == before["file_bytes"]
        result = run.of(variant)
        assert result.load_ms == before["load_ms"]
        assert dataclasses.asdict(result.memory) == before["memory"]
        (timed,) = before["latency_ms_by_size"].items()
        assert list(result.latency_ms_by_size) == [int(timed[0])]
        assert list(result.latency_ms_by_size[int(timed[0])].samples) == timed[1]["samples"]
    for step in report.waterfall:
        assert set(step.bytes_by_variant) <= set(run.results)
    path = tmp_path / "report.json"
    write_json(report, path)
    assert json.loads(path.read_text())["schema"] == 3
    assert read_json(path) == report


def test_the_waterfall_of_schema_1_names_variants_by_their_ids(tmp_path):
    assert next(iter(recorded(1)["waterfall"][0]["bytes_by_variant"])) == "naive"
    report = report_from_dict(recorded(1))
    assert next(iter(report.waterfall[0].bytes_by_variant)) == "onnx naive"


def test_an_old_report_without_measurements_has_no_runs():
    data = recorded(2)
    for variant in data["variants"]:
        variant |= {"load_ms": None, "memory": None, "latency_ms_by_size": {}}
    assert report_from_dict(data).runs == ()


def test_a_corrupt_report_of_an_older_schema_is_refused():
    data = recorded(1)
    data["waterfall"][0]["bytes_by_variant"]["naive"] = "big"
    with pytest.raises(BadFileError, match=r"\[naive\] must be a whole number, and is 'big'"):
        report_from_dict(data)
    data = recorded(2)
    del data["threads"]
    with pytest.raises(BadFileError, match="report lacks the field 'threads'"):
        report_from_dict(data)
    with pytest.raises(BadFileError, match="report has the unknown field 'runs'"):
        report_from_dict(recorded(2) | {"runs": []})


def test_a_report_of_several_devices_comes_back(everything, tmp_path):
    path = tmp_path / "report.json"
    write_json(everything, path)
    assert read_json(path) == everything


def test_two_runs_on_one_device_are_refused(report):
    data = report_to_dict(report)
    data["runs"].append(data["runs"][0])
    with pytest.raises(BadFileError, match="corrupt: two runs are measured on local"):
        report_from_dict(data)


def test_a_report_of_two_formats_comes_back(both, tmp_path):
    path = tmp_path / "report.json"
    write_json(both, path)
    assert read_json(path) == both


def test_two_variants_of_one_name_are_refused(both):
    data = report_to_dict(both)
    data["variants"].append(data["variants"][1])
    with pytest.raises(BadFileError, match="two variants are named 'tflite latency-first'"):
        report_from_dict(data)


@pytest.mark.parametrize("data", [None, [], {}, {"format": "x"}, "report", 3])
def test_what_is_no_report_is_refused(data):
    with pytest.raises(BadFileError, match="this is not a report: it has no 'schema'"):
        report_from_dict(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", 0, "threads"), 1.5, r"runs\[0\]\.threads must be a whole number, and is 1\.5"),
        (("runs", 0, "threads"), True, "must be a whole number, and is True"),
        (
            ("runs", 0, "kind"),
            "guessed",
            "kind must be 'measured' or 'estimated', and is 'guessed'",
        ),
        (("runs", 0, "kind"), "estimated", "run on 'local' has measured figures of 'onnx naive'"),
        (("model",), None, r"report\.model must be a text"),
        (("colour",), "red", "report has the unknown field 'colour'"),
        (("notes",), "a", r"report\.notes must be a list"),
        (("ties", "stored"), {}, r"report\.ties\.stored must be a list"),
        (("runs", 0, "environment", "swapped"), 0, r"environment\.swapped must be true or false"),
        (("variants", 1, "ratio"), "big", r"variants\[1\]\.ratio must be a number, and is 'big'"),
        (
            ("runs", 0, "results", "onnx naive", "latency_ms_by_size", "two"),
            {},
            "must be whole numbers as keys",
        ),
        (
            ("runs", 0, "results", "onnx naive", "latency_ms_by_size", "2"),
            {},
            r"\[2\] lacks the field 'runs'",
        ),
        (("ties", "stored", 0, "aliases"), [["a"]], r"aliases\[0\] must be a list of 2"),
        (("ties", "stored", 0, "shape"), [1.5], r"shape\[0\] must be a whole number"),
    ],
)
def test_a_corrupt_report_is_refused_with_the_place(path, value, message, report):
    data = json.loads(json.dumps(report_to_dict(report)))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BadFileError, match=message):
        report_from_dict(data)


def test_a_missing_field_is_refused(report):
    data = report_to_dict(report)
    del data["axis"]
    with pytest.raises(BadFileError, match="report lacks the field 'axis'"):
        report_from_dict(data)


def test_a_field_with_a_default_may_be_missing(report):
    data = report_to_dict(report)
    del data["created"]
    assert report_from_dict(data).created == ""


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"schema": 1,}'])
def test_a_file_that_is_not_json_is_refused(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BadFileError, match=r"report\.json' is not valid JSON"):
        read_json(path)


def test_a_file_of_bytes_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFileError, match="is not valid JSON"):
        read_json(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"none\.json' cannot be read: No such file"):
        read_json(tmp_path / "none.json")


def test_a_corrupt_file_is_named(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_to_dict(report) | {"schema": 9}))
    with pytest.raises(BadFileError, match=r"report\.json': the report has schema 9"):
        read_json(path)


def test_a_folder_that_is_missing_is_an_output_error(report, tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_json(report, tmp_path / "none" / "report.json")

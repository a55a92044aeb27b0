import pytest

from devices.report.units import (
    format_bytes,
    format_digits,
    format_error,
    format_ms,
    format_share,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (3_840, "3,840 B"), (9_999, "9,999 B"), (10_000, "0.0100 MB"),
        (971_392, "0.971 MB"), (1_934_217, "1.93 MB"), (61_234_567, "61.2 MB"),
        (999_600_000, "1,000 MB"), (25_276_510_208, "25,277 MB"), (-212_992, "-0.213 MB"),
        (None, "-"),
    ],
)  # fmt: skip
def test_bytes(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123 ms"), (3.2149, "3.21 ms"), (99.96, "100 ms"), (None, "-")],
)
def test_ms(value, text):
    assert format_ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9.999, "10.0"), (999.4, "999"), (999.5, "1,000"), (float("nan"), "nan")],
)
def test_digits(value, text):
    assert format_digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100 %"), (0.99996, "99.996 %"), (0.99961, "99.96 %"), (0.9137, "91.4 %"),
     (0.9999999, "< 100 %"), (0.0, "0.0 %"), (None, "-")],
)  # fmt: skip
def test_only_a_full_share_is_written_as_full(value, text):
    assert format_share(value) == text


def test_errors():
    assert format_error(2.87e-07) == "2.9e-07"
    assert format_error(0.0) == "0"
    assert format_error(None) == "-"

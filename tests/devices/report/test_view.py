import dataclasses

import pytest

from devices.report.view import (
    formats,
    label,
    latency_ratio,
    naive_variant,
    ordered_variants,
    ours,
    parity_words,
    waterfall_of,
)


def test_formats_keep_the_order_of_their_first_appearance(both):
    turned = dataclasses.replace(both, variants=both.variants[::-1])
    assert (formats(both), formats(turned)) == (("onnx", "tflite"), ("tflite", "onnx"))


def test_naive_stands_first_in_each_format(both):
    assert [variant.id for variant in ordered_variants(both)] == [
        "onnx naive", "onnx latency-first", "onnx memory-first",
        "tflite naive", "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip
    assert [variant.id for variant in ours(both)] == [
        "onnx latency-first", "onnx memory-first", "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip


def test_a_label_names_the_format_only_where_there_are_several(report, both):
    assert [label(report, v) for v in report.variants] == ["naive", "latency-first", "memory-first"]
    assert [label(both, v) for v in ordered_variants(both)][3] == "tflite naive"


def test_a_variant_is_held_against_the_naive_one_of_its_format(both):
    for variant in both.variants:
        naive = naive_variant(both, variant)
        assert naive.id == f"{variant.format} naive"
        mine, theirs = (v.latency_ms_by_size[2].p50 for v in (variant, naive))
        assert latency_ratio(both, variant, 2) == mine / theirs


def test_without_a_naive_one_of_its_format_there_is_no_ratio(both):
    kept = tuple(v for v in both.variants if v.id != "tflite naive")
    report = dataclasses.replace(both, variants=kept)
    ratios = {v.id: latency_ratio(report, v, 2) for v in kept}
    assert [name for name, ratio in ratios.items() if ratio is None] == [
        "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip


def test_a_format_has_the_steps_that_are_its_own(report, both):
    assert waterfall_of(report, "onnx") == report.waterfall
    labels = [[step.label for step in waterfall_of(both, each)] for each in formats(both)]
    assert [each[2] for each in labels] == ["ONNX", "TFLite"]
    assert labels[0][:2] == labels[1][:2]


def test_two_variants_of_one_format_and_name_are_refused(both):
    with pytest.raises(ValueError, match="two variants are named 'onnx latency-first'"):
        dataclasses.replace(both, variants=(*both.variants, both.variants[0]))


def test_parity_that_was_not_measured_has_no_words(report):
    bare = tuple(dataclasses.replace(v, parity=None) for v in report.variants)
    assert parity_words(dataclasses.replace(report, variants=bare)) is None

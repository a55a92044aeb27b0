import dataclasses

import pytest

from devices.report.view import (
    formats,
    group_title,
    groups,
    label,
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


def in_two_precisions(report):
    half = tuple(
        dataclasses.replace(v, precision="float16", qualifier="float16") for v in report.variants
    )
    return dataclasses.replace(report, variants=(*report.variants, *half))


def test_precisions_of_one_format_are_told_apart_and_stand_beside_their_own_naive(report):
    two = in_two_precisions(report)
    assert [v.id for v in two.variants[2:4]] == ["onnx memory-first", "onnx float16 naive"]
    assert [label(two, v) for v in two.variants[2:4]] == ["memory-first", "float16 naive"]
    assert groups(two) == (("onnx", ""), ("onnx", "float16"))
    assert [group_title(each) for each in groups(two)] == ["ONNX", "ONNX float16"]
    for variant in two.variants:
        assert naive_variant(two, variant).precision == variant.precision

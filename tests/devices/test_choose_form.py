"""How a form is chosen from timings; the timings here are made up, the rule is not."""

from __future__ import annotations

import pytest

import devices.forms
from devices.deploy import capture_canonical, make_naive
from devices.forms import choose_form
from devices.options import NAIVE, Options
from devices.source import resolve
from devices.target import find_target
from export.lower import LATENCY_FIRST, MEMORY_FIRST
from runtimes.bench import summarise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = resolve("resnet-pe-fmnist")
    _, canonical = capture_canonical(source, lambda _: None)
    return canonical, make_naive(source, tmp_path_factory.mktemp("naive"))


@pytest.mark.parametrize(
    ("repacked", "switched", "chosen"),
    [
        ((1.0, 1.0), (0.6, 1.0), "ort-switched"),
        ((1.0, 1.0), (0.6, 1.1), "ort-repacked"),  # a loss at one size is not paid for
        ((1.0, 1.0), (0.99, 0.98), "ort-repacked"),  # too small to be more than noise
        ((0.7, 0.7), (0.9, 0.9), "ort-repacked"),
    ],
)
def test_a_form_is_taken_for_a_gain_without_a_loss(model, monkeypatch, repacked, switched, chosen):
    def timed(*_args, **_more):
        by_name = {NAIVE: (1.0, 1.0), "ort-repacked": repacked, "ort-switched": switched}
        return {
            size: {name: summarise([ms[place]], 1.0, 0) for name, ms in by_name.items()}
            for place, size in enumerate((1, 128))
        }

    monkeypatch.setattr(devices.forms, "time_side_by_side", timed)
    form, why = choose_form(
        model[0], LATENCY_FIRST, model[1], find_target("local"), Options(), lambda _: None
    )
    assert form.pipeline == chosen
    assert why.startswith("timed here, mean ratio to naive: ort-repacked")


@pytest.mark.parametrize("target", ["raspberry-pi-5", "local"])
def test_what_is_not_timed_is_the_safe_form(model, target):
    options = Options(profile=False)
    form, why = choose_form(
        model[0], LATENCY_FIRST, model[1], find_target(target), options, lambda _: None
    )
    assert form.pipeline == "ort-repacked"
    assert "not timed" in why
    form, _ = choose_form(
        model[0], MEMORY_FIRST, model[1], find_target(target), options, lambda _: None
    )
    assert form.pipeline == "ort-mapped"

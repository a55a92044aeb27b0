import dataclasses
import re
import sys
from html.parser import HTMLParser

import pytest

from devices.report.cards import cards, headline, summaries
from devices.report.drawing import NAIVE_COLOURS, series_index
from devices.report.html_form import render_html, write_html
from devices.report.units import format_bytes, format_digits, format_estimate, format_ms
from export.errors import MissingExtraError, OutputError
from export.records import StoredTensor, TieMap, Use
from tests.devices.report.reports import with_result, without_figures

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def page_of():
    pages = {}

    def render(report):
        key = repr(report)
        if key not in pages:
            pages[key] = render_html(report)
        return pages[key]

    return render


def test_the_page_is_well_formed(report, page_of):
    page = Page(page_of(report))
    assert page.tags.count("svg") == 5
    assert page.tags.count("h1") == 1
    assert len(page.ids) == len(set(page.ids))


def test_the_page_loads_nothing(report, page_of):
    text = page_of(report)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on")
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_every_reference_in_a_plot_has_its_target(report, page_of):
    text = page_of(report)
    ids = set(Page(text).ids)
    used = re.findall(r'xlink:href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
    assert used
    assert set(used) <= ids


def test_colours_follow_the_page(report, page_of):
    text = page_of(report)
    assert "prefers-color-scheme: dark" in text
    assert "var(--v1)" in text
    assert not re.search(r"#0[12]0[12]0\d", text)  # a placeholder that was not replaced


def test_plots_have_words_and_a_table(report, page_of):
    page = Page(page_of(report))
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == 5
    assert any("naive 1.84 MB" in label for label in labels)
    assert page.tags.count("table") >= 6


def test_the_key_figures_lead(report, page_of):
    page = Page(page_of(report))
    assert headline(report) == "0.956 MB instead of 1.84 MB in the file"
    assert headline(report) in page.words
    lines = [words for _, words in summaries(report)]
    assert "0.935 MB of weights in memory instead of 2.72 MB" in lines[1]
    assert "at batch 1 instead of" in lines[0]
    assert "Measured here; not a figure of the target (Raspberry Pi 5)." in page.words


def test_every_variant_stands_on_every_card(report):
    for card in cards(report):
        assert [card.lead.name, *(line.name for line in card.others)] == [
            "latency-first", "memory-first", "naive",
        ]  # fmt: skip
    assert [card.good for card in cards(report)].count(True) == 1


def test_all_figures_are_there(report, page_of):
    words = Page(page_of(report)).words
    for variant in report.variants:
        result = report.runs[0].of(variant)
        assert format_bytes(result.memory.settled_rss_bytes) in words
        assert format_ms(result.load_ms) in words
        for latency in result.latency_ms_by_size.values():
            for name in ("p50", "min", "p90", "p95", "p99", "mean", "std", "first"):
                assert format_digits(getattr(latency, name)) in words
        for key, value in variant.session_options.items():
            assert f"{key} = {value}" in words
    for step in report.waterfall:
        assert step.cause in words
    for tensor in report.ties.stored:
        assert tensor.name in words
    assert "linear blocks.0.ffn.down (transpose)" in words
    assert "AMD EPYC 7763, x86_64, 2 cores" in words
    assert "The clock was not locked." in words


def test_the_same_report_gives_the_same_page(report):
    assert render_html(report) == render_html(report)


def hostile_run(run, hostile, variants):
    """A run in which every text is hostile, of variants in the same order."""
    results = {
        variant.id: dataclasses.replace(result, invalid=hostile, failure=hostile)
        for variant, result in zip(variants, run.results.values(), strict=True)
    }
    environment = run.environment and dataclasses.replace(
        run.environment, cpu=hostile, power_mode=hostile, warnings=(hostile,)
    )
    return dataclasses.replace(
        run, device=run.device + hostile, measured_on=hostile, results=results,
        environment=environment, notes=(hostile,),
    )  # fmt: skip


def test_hostile_names_are_text(several):
    report = several
    hostile = '<script>alert("1")</script><img src=x onerror=a>$x$ & \' "'
    variants = tuple(
        dataclasses.replace(v, name=v.name if v.name == "naive" else v.name + hostile, form=hostile)
        for v in report.variants
    )
    steps = tuple(
        dataclasses.replace(
            step,
            label=step.label + hostile,
            cause=hostile,
            bytes_by_variant={v.id: 1_234_567 for v in variants},
        )
        for step in report.waterfall
    )
    ties = TieMap((StoredTensor(hostile, (2, 3), "float32", (Use(hostile, hostile, hostile),)),))
    text = render_html(
        dataclasses.replace(
            report,
            model=hostile,
            target_title=hostile,
            axis=hostile,
            runs=tuple(hostile_run(run, hostile, variants) for run in several.runs),
            notes=(hostile,),
            variants=variants,
            waterfall=steps,
            ties=ties,
        )
    )
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert hostile in "".join(page.text)


def test_a_long_list_of_ties_is_folded(report):
    many = TieMap(
        tuple(StoredTensor(f"w{i}", (3, 5), "float32", (Use("mm", "identity"),)) for i in range(40))
    )
    page = Page(render_html(dataclasses.replace(report, ties=many)))
    assert "All 40 stored tensors, tied ones first" in page.words


def with_latencies(report, change):
    """Give each result of each run the latencies that ``change`` makes of its own."""
    runs = tuple(
        dataclasses.replace(
            run,
            results={
                name: dataclasses.replace(
                    result, latency_ms_by_size=change(result.latency_ms_by_size)
                )
                for name, result in run.results.items()
            },
        )
        for run in report.runs
    )
    return dataclasses.replace(report, runs=runs)


def without_samples(timed):
    return {
        size: dataclasses.replace(latency, samples=(), p99=None) for size, latency in timed.items()
    }


def only_at_4(timed):
    return {4: timed[4]}


def test_a_report_without_measurements(report):
    variants = tuple(dataclasses.replace(v, parity=None, accuracy=None) for v in report.variants)
    bare = dataclasses.replace(report, variants=variants, waterfall=(), runs=())
    page = Page(render_html(bare))
    assert page.tags.count("svg") == 1
    assert "Not measured: latency." in page.words


def test_a_report_of_one_variant(report):
    page = Page(render_html(dataclasses.replace(report, variants=report.variants[1:2])))
    assert "0.956 MB in the file (latency-first)" in page.words
    assert "No naive export stands beside it." in page.words
    page = Page(render_html(dataclasses.replace(report, variants=report.variants[:1])))
    assert "1.84 MB in the file (naive)" in page.words


def test_a_report_of_one_size(report):
    page = Page(render_html(with_latencies(report, only_at_4)))
    assert "latency in ms, batch 4" in page.words


def test_a_report_without_samples(report):
    page = Page(render_html(with_latencies(report, without_samples)))
    assert page.tags.count("svg") == 4
    assert "Band: min to p90." in page.words


def test_a_wide_range_gets_a_log_axis(report):
    def stretched(timed):
        return {
            size: dataclasses.replace(latency, p50=latency.p50 * size**2)
            for size, latency in timed.items()
        }

    Page(render_html(with_latencies(report, stretched)))


def test_an_invalid_measurement_is_said_to_be(report):
    (run,) = report.runs
    environment = dataclasses.replace(run.environment, throttled=True)
    run = dataclasses.replace(run, environment=environment)
    page = Page(render_html(dataclasses.replace(report, runs=(run,))))
    assert "Invalid: the processor throttled" in page.words


def test_two_formats_stand_on_one_page(both, page_of):
    page = Page(page_of(both))
    assert page.tags.count("svg") == 6  # a waterfall for each
    assert len(page.ids) == len(set(page.ids))
    assert "Where the bytes come from: ONNX" in page.words
    assert "Where the bytes come from: TFLite" in page.words
    assert "stored tensors in the lowered file" in page.words
    assert "onnxruntime 1.23.2, ai-edge-litert 2.1.0" in page.words
    for variant in both.variants:
        assert variant.id in page.words
        assert format_bytes(both.runs[0].of(variant).memory.settled_rss_bytes) in page.words


def test_each_format_has_its_own_story_of_bytes(both, page_of):
    page = Page(page_of(both))
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    onnx, tflite = (label for label in labels if label.startswith("Size at each step"))
    assert "ONNX: onnx naive 1.83 MB, onnx latency-first" in onnx
    assert "tflite" not in onnx.lower()
    assert "TFLite: tflite naive 1.79 MB, tflite latency-first" in tflite
    assert "onnx" not in tflite.lower()


def test_two_formats_lead_with_both_files(both):
    assert headline(both) == (
        "0.956 MB instead of 1.84 MB in the ONNX file, "
        "0.969 MB instead of 1.86 MB in the TFLite file"
    )
    assert [variant.id for variant, _ in summaries(both)] == [
        "onnx latency-first", "onnx memory-first", "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip
    assert "1.06 MB of weights in memory instead of 3.73 MB" in summaries(both)[3][1]


def test_a_format_without_naive_leads_by_itself(both):
    kept = tuple(v for v in both.variants if v.id != "tflite naive")
    report = dataclasses.replace(both, variants=kept)
    assert headline(report).endswith(", 0.969 MB in the TFLite file (latency-first)")
    assert [variant.format for variant, _ in summaries(report)] == ["onnx", "onnx"]
    Page(render_html(report))


def test_every_variant_of_two_formats_stands_on_every_card(both):
    for card in cards(both):
        assert [card.lead.name, *(line.name for line in card.others)] == [
            "onnx latency-first", "onnx memory-first", "onnx naive",
            "tflite latency-first", "tflite memory-first", "tflite naive",
        ]  # fmt: skip
    (size,) = (card for card in cards(both) if card.title == "File size")
    assert size.others[3].second == "0.52x"  # of the TFLite naive, not of the larger of all
    assert size.others[4].second == ""


def test_six_variants_have_six_colours_and_naive_ones_are_dim(both, report, page_of):
    places = {variant.id: series_index(both, variant) for variant in both.variants}
    assert len(set(places.values())) == len(places)
    assert {places["onnx naive"], places["tflite naive"]} == set(NAIVE_COLOURS)
    assert [series_index(report, variant) for variant in report.variants] == [0, 1, 2]
    text = page_of(both)
    for place in places.values():
        assert text.count(f"--v{place}: #") == 2  # light and dark
        assert f".s{place} {{" in text
    assert not re.search(r"#0[12]0[12]0\d", text)


def test_two_formats_of_one_size_and_without_samples(both):
    page = Page(render_html(with_latencies(with_latencies(both, only_at_4), without_samples)))
    assert "latency in ms, batch 4" in page.words


def labels_of(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]


def test_each_device_has_a_section_with_its_figures(several, page_of):
    page = Page(page_of(several))
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 2 + 3 * 3  # of the files, and of each measured device
    for words in (
        "Measured on this machine (AMD EPYC 7763)",
        "Measured on pi-on-desk (Raspberry Pi 5 Model B Rev 1.0)",
        "Measured on virt (QEMU cortex-a76), emulated",
        "Estimated for Raspberry Pi 5",
    ):
        assert words in page.words
    for run in several.runs:
        for result in run.results.values():
            for latency in result.latency_ms_by_size.values():
                assert format_digits(latency.p95) in page.words
    on_board = [label for label in labels_of(page) if "on pi-on-desk" in label]
    assert [label.split(" on ")[0] for label in on_board] == [
        "Weights resident in memory", "Median latency", "Share of the runs",
    ]  # fmt: skip


def test_an_estimate_is_drawn_nowhere_and_is_marked_at_every_figure(several, page_of):
    text = page_of(several)
    page = Page(text)
    assert "Estimated for Raspberry Pi 5, 4 threads; not measured." in page.words
    assert not [label for label in labels_of(page) if "stimate" in label]
    for result in several.runs[1].results.values():
        for estimate in result.estimate_ms_by_size.values():
            marked = page.words.count(format_estimate(estimate))
            assert page.words.count(format_ms(estimate)) == marked >= 1  # never without its marks
    assert "Scaled by the peak of its cores" in page.words


def test_an_emulated_device_is_tagged(several, page_of, report):
    page = Page(page_of(several))
    assert "Latency emulated" in page.words
    assert "Milliseconds, emulated." in page.words
    assert "Emulated; its times are not those of a device." in page.words
    alone = dataclasses.replace(several, runs=several.runs[3:])
    assert [card.title for card in cards(alone)][2:4] == [
        "Weights in memory (virt, emulated)", "Median latency, batch 1 (virt, emulated)",
    ]  # fmt: skip
    assert all(words.endswith(" (virt, emulated)") for _, words in summaries(alone))
    assert "Milliseconds, emulated." in Page(render_html(alone)).words


def test_the_state_of_each_device_is_shown(several, page_of):
    words = Page(page_of(several)).words
    assert "2.40 GHz, then 1.50 to 2.40 GHz" in words
    assert "47.2 °C, then 68.3 °C" in words
    assert "MAXN" in words
    assert "5.14 W" in words
    assert "pi-on-desk: The supply voltage was low once." in words
    assert "computed on pi-on-desk5.2e-066.1e-06" in words


def test_what_is_invalid_or_failed_leads_with_its_reason(several):
    report = with_result(several, 2, "onnx naive", invalid="it throttled")
    report = without_figures(report, 3, "onnx memory-first")
    report = with_result(report, 3, "onnx memory-first", failure="out of memory")
    page = Page(render_html(report))
    assert (
        "Invalid on pi-on-desk (Raspberry Pi 5 Model B Rev 1.0), naive: it throttled." in page.words
    )
    assert "Failed on virt (QEMU cortex-a76), emulated, memory-first: out of memory." in page.words
    assert f"{format_digits(report.runs[2].results['onnx naive'].latency_ms_by_size[1].p50)} !" in (
        page.words
    )
    first = with_result(several, 0, "onnx naive", invalid="it throttled")
    assert summaries(first) == ()


def test_a_report_of_an_estimate_alone(several):
    page = Page(render_html(dataclasses.replace(several, runs=several.runs[1:2])))
    assert page.tags.count("svg") == 2
    assert "Not measured: latency." in page.words
    assert "Estimated for Raspberry Pi 5, 4 threads; not measured." in page.words


def test_two_precisions_of_a_format_stand_apart(report):
    half = tuple(
        dataclasses.replace(v, qualifier="float16", file_bytes=v.file_bytes // 2)
        for v in report.variants
    )
    two = dataclasses.replace(report, variants=(*report.variants, *half))
    assert headline(two) == (
        "0.956 MB instead of 1.84 MB in the ONNX file, "
        "0.478 MB instead of 0.922 MB in the ONNX float16 file"
    )
    Page(render_html(two))


def test_writing(report, tmp_path):
    path = tmp_path / "report.html"
    write_html(report, path)
    assert path.read_text(encoding="utf-8") == render_html(report)
    with pytest.raises(OutputError, match="cannot be written"):
        write_html(report, tmp_path / "none" / "report.html")


def test_a_missing_matplotlib_names_the_extra(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"'matplotlib' is not installed.*\[report\]"):
        render_html(report)

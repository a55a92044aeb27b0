import dataclasses

import pytest

import devices.target
from devices.target import (
    FIGURES,
    TARGETS_FOLDER,
    Figure,
    Target,
    find_target,
    load_target_file,
    load_targets,
    require_format,
    resolve_target,
)
from export.errors import BadFileError, UnknownNameError, UserError

NAMES = sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))

GOOD = """\
name = "board"
title = "A board"
arch = "aarch64"
formats = ["onnx"]
runtime = "onnxruntime"
precision = "float32"
transport = "ssh"

[figures.ram_bytes]
value = 1_073_741_824
kind = "datasheet"
source = "its data sheet"
"""


@pytest.fixture(scope="module")
def targets():
    return load_targets()


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "board.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def test_every_figure_name_is_a_field():
    assert set(FIGURES) <= {field.name for field in dataclasses.fields(Target)}


def test_there_are_targets():
    assert {"raspberry-pi-5", "jetson-orin-nano", "android", "iphone", "phone", "web", "local"} <= {
        *NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_complete(name, targets):
    target = targets[name]
    assert target.title
    if target.members:
        assert not target.formats
        return
    assert target.formats
    assert target.arch
    assert target.runtime
    assert target.precision
    assert target.transport
    for figure in target.figures.values():
        assert figure.source
        assert figure.value > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_derived_figure_shows_how(name, targets):
    for key, figure in targets[name].figures.items():
        if figure.kind == "derived":
            assert figure.note, key


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_of_the_right_size(name, targets):
    # A slipped power of ten is the likely mistake; the bounds are of phones and boards.
    bounds = {
        "cpu_cores": (1, 256), "cpu_clock_hz": (5e8, 6e9), "l2_bytes": (2**17, 2**27),
        "l3_bytes": (2**20, 2**30), "ram_bytes": (2**28, 2**41),
        "memory_bandwidth_bytes_per_s": (1e9, 1e12),
        "memory_bandwidth_peak_bytes_per_s": (1e9, 1e12),
        "peak_flops_fp32_per_s": (1e10, 1e14), "peak_flops_fp16_per_s": (1e11, 1e15),
    }  # fmt: skip
    for key, figure in targets[name].figures.items():
        low, high = bounds[key]
        assert low <= figure.value <= high, key


def test_measured_bandwidth_is_below_the_peak(targets):
    seen = 0
    for target in targets.values():
        if target.memory_bandwidth_peak_bytes_per_s and target.memory_bandwidth_bytes_per_s:
            peak = target.memory_bandwidth_peak_bytes_per_s.value
            assert target.memory_bandwidth_bytes_per_s.value < peak
            seen += 1
    assert seen


def test_a_figure_without_a_source_is_absent(targets):
    assert targets["raspberry-pi-zero-2w"].memory_bandwidth_bytes_per_s is None
    assert targets["pixel-8"].memory_bandwidth_bytes_per_s is None


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("raspberry-pi", "raspberry-pi-5"),
        ("jetson", "jetson-orin-nano"),
        ("Raspberry_Pi", "raspberry-pi-5"),
        ("jetson-thor", "jetson-thor"),
        ("local", "local"),
    ],
)
def test_names_and_aliases_resolve(asked, name):
    assert find_target(asked).name == name


def test_every_alias_resolves(targets):
    for target in targets.values():
        for alias in target.aliases:
            assert find_target(alias) == target


def test_two_targets_with_one_alias_are_refused(tmp_path, monkeypatch):
    for name in ("board", "other"):
        text = GOOD.replace('"board"', f'"{name}"') + ""
        (tmp_path / f"{name}.toml").write_text('aliases = ["same"]\n' + text)
    monkeypatch.setattr(devices.target, "TARGETS_FOLDER", tmp_path)
    with pytest.raises(BadFileError, match=r"other\.toml.*'same' is already a name of .*'board'"):
        load_targets()


def test_a_name_unlike_its_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "else.toml").write_text(GOOD)
    monkeypatch.setattr(devices.target, "TARGETS_FOLDER", tmp_path)
    with pytest.raises(BadFileError, match=r"'name' is 'board'; it must be 'else'"):
        load_targets()


@pytest.mark.parametrize("member", ["nobody", "group"])
def test_a_member_that_is_no_single_target_is_refused(member, tmp_path, monkeypatch):
    (tmp_path / "group.toml").write_text(f'name = "group"\ntitle = "G"\nmembers = ["{member}"]\n')
    monkeypatch.setattr(devices.target, "TARGETS_FOLDER", tmp_path)
    with pytest.raises(BadFileError, match=f"'members' names '{member}'"):
        load_targets()


def test_an_unknown_name_names_near_ones():
    with pytest.raises(UnknownNameError, match=r"jetson-orin-nano'.*`weightspace targets`"):
        find_target("jetson-orin-nanno")


def test_local_is_read_from_this_machine():
    local = find_target("local")
    assert local.read_at_run_time
    assert local.arch in ("aarch64", "x86_64")
    assert local.cpu_cores
    assert local.cpu_cores.value >= 1
    assert local.ram_bytes
    assert local.ram_bytes.kind == "measured"


def test_a_group_resolves_to_its_members():
    assert [target.name for target in resolve_target("phone")] == ["android", "iphone"]
    assert [target.name for target in resolve_target("raspberry-pi")] == ["raspberry-pi-5"]


def test_the_first_available_format_is_taken():
    assert require_format(find_target("raspberry-pi")) == "onnx"
    assert find_target("raspberry-pi").available_formats == ("onnx", "tflite")
    assert require_format(find_target("android")) == "tflite"


@pytest.mark.parametrize(
    ("name", "needed"),
    [("jetson", "tensorrt"), ("jetson-thor", "tensorrt")],
)
def test_a_target_without_a_format_says_which_ones_have(name, needed, monkeypatch):
    monkeypatch.setattr("devices.target.AVAILABLE_FORMATS", ("onnx", "tflite", "mlpackage"))
    with pytest.raises(UserError) as caught:
        require_format(find_target(name))
    message = str(caught.value)
    assert f"needs the {needed} format, which this version cannot write yet" in message
    assert "the onnx and tflite and mlpackage targets are: android, galaxy-s24" in message
    assert "\n" not in message


def test_a_group_with_an_available_member_asks_for_one():
    with pytest.raises(UserError, match="name one of: android, iphone"):
        require_format(find_target("phone"))


def test_a_file_of_ones_own_is_a_target(write):
    target = find_target(str(write(GOOD)))
    assert target.name == "board"
    assert target.ram_bytes == Figure(1_073_741_824, "its data sheet", "datasheet")
    assert target.figures == {"ram_bytes": target.ram_bytes}
    assert require_format(target) == "onnx"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name =", "nmae =", r"key 'nmae' is not known; did you mean 'name'\?"),
        ('title = "A board"\n', "", "'title' is missing"),
        ('"A board"', "7", "'title' must be a text"),
        ('"aarch64"', '"arm"', "'arch' is 'arm'; it must be one of: aarch64, x86_64"),
        ('["onnx"]', '"onnx"', "'formats' must be a list of texts"),
        ('["onnx"]', "[]", "'formats' is missing"),
        ('["onnx"]', '["onyx"]', "'formats' is 'onyx'; it must be one of: onnx"),
        ('"ssh"', '"telnet"', "'transport' is 'telnet'"),
        ('source = "its data sheet"\n', "", r"'figures\.ram_bytes\.source' is missing"),
        ('"its data sheet"', '" "', r"'figures\.ram_bytes\.source' must be a text"),
        ('"datasheet"', '"guess"', r"'figures\.ram_bytes\.kind' is 'guess'"),
        ("1_073_741_824", "true", r"'figures\.ram_bytes\.value' must be a number above zero"),
        ("1_073_741_824", "-1", r"'figures\.ram_bytes\.value' must be a number above zero"),
        ("1_073_741_824", "nan", r"'figures\.ram_bytes\.value' must be a number above zero"),
        (
            "ram_bytes",
            "ram_byte",
            r"key 'figures\.ram_byte' is not known; did you mean 'ram_bytes'",
        ),
        ("value =", "amount =", r"key 'figures\.ram_bytes\.amount' is not known"),
        ("[figures.ram_bytes]", "[figures]\nram_bytes = 3\n[x]", "key 'x' is not known"),
        ("[figures.ram_bytes]", "[[", "is not valid TOML"),
        ('arch = "aarch64"', 'members = ["android"]', "'figures' does not go with 'members'"),
        ("[figures", "read_at_run_time = 1\n[figures", "'read_at_run_time' must be true or false"),
        ("[figures", "read_at_run_time = true\n[figures", "'arch' does not go with 'read_at_run"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_key(old, new, message, write):
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(BadFileError, match=message) as caught:
        load_target_file(path)
    assert "board.toml" in str(caught.value)


def test_a_figure_that_is_no_table_is_refused(write):
    text = GOOD[: GOOD.index("[figures")] + "[figures]\nram_bytes = 3\n"
    with pytest.raises(BadFileError, match="must be a table with value, kind and source"):
        load_target_file(write(text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"none\.toml' cannot be read: No such file"):
        find_target(str(tmp_path / "none.toml"))

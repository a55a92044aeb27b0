"""What the agent reads from what a system says of itself.

The texts are short pieces in the documented forms, written for these tests: the forms of tegrastats
are those of NVIDIA's Jetson Linux guides for JetPack 5, 6 and 7; ``vcgencmd``'s bits those of
Raspberry Pi's documentation of ``get_throttled``.
"""

from __future__ import annotations

import pytest

from devices import agent

PI_5 = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n" * 4
ORIN = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n" * 6
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [(PI_5, "4 x Cortex-A76"), (ORIN, "6 x Cortex-A78AE"), (X86, "Intel(R) Xeon(R)"), ("", ""),
     ("CPU implementer\t: 0x41\nCPU part\t: 0xfff\n", ""),
     (PI_5[:60] + ORIN[:60], "1 x Cortex-A76 + 1 x Cortex-A78AE"),
     ("CPU implementer\t: 0x4e\nCPU part\t: 0xd0b\n", "")],
)  # fmt: skip
def test_a_processor_is_named(cpuinfo, name):
    assert agent.cpu_of(cpuinfo) == name


@pytest.mark.parametrize(
    ("text", "bits"), [("throttled=0x0\n", 0), ("throttled=0x50005\n", 0x50005), ("", None)]
)
def test_the_state_of_a_raspberry_pi_is_read(text, bits):
    assert agent.throttled_of(text) == bits


def test_the_bits_of_a_raspberry_pi_are_told_in_words():
    assert agent.throttle_words(0x0) == []
    assert agent.throttle_words(0x50005) == ["under-voltage", "throttling"]
    assert agent.throttle_words(0x50000) == []
    assert agent.throttle_words(0xA0000 >> 16) == ["capped frequency", "the soft temperature limit"]


@pytest.mark.parametrize(
    ("text", "mode"),
    [("NV Power Mode: MAXN\n0\n", "MAXN"), ("NV Fan Mode:quiet\nNV Power Mode: 15W\n2\n", "15W"),
     ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"), ("NVPM ERROR\n", None)],
)  # fmt: skip
def test_the_power_mode_of_a_jetson_is_read(text, mode):
    assert agent.power_mode_of(text) == mode


def test_the_release_of_jetson_linux_is_read():
    text = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x\n"
    assert agent.l4t_of(text) == "36.4.3"
    assert agent.l4t_of("") is None


TEGRASTATS = {
    "jetpack 5": (
        "RAM 2723/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [3%@729,0%@729,off] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 10%@1300 CV0@-256C CPU@45.9C tj@46.1C "
        "VDD_IN 4988mW/4990mW VDD_CPU_GPU_CV 481mW/481mW VDD_SOC 1443mW/1443mW",
        {"VDD_IN": 4988, "VDD_CPU_GPU_CV": 481, "VDD_SOC": 1443},
        {"CPU": 45.9, "tj": 46.1},
        [1_300_000_000],
    ),
    "jetpack 6, with a date": (
        "05-12-2025 10:00:00 RAM 20642/62817MB (lfb 1x2MB) CPU [0%@729] GR3D_FREQ 12%@[1300,1298] "
        "cpu@52.968C gpu@-256C VDD_GPU_SOC 5139mW/5000mW VIN_SYS_5V0 3000mW/2900mW",
        {"VDD_GPU_SOC": 5139, "VIN_SYS_5V0": 3000},
        {"cpu": 52.968},
        [1_300_000_000, 1_298_000_000],
    ),
    "jetpack 7 on thor": (
        "RAM 2000/125000MB CPU [0%@972] GR3D_FREQ @[1000,1000,1000] cpu@52.968C tj@53C "
        "VDD_GPU 0mW/0mW/0mW VDD_CPU_SOC_MSS 6510mW/6510mW/6510mW VIN 23000mW/22000mW/26000mW",
        {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 6510, "VIN": 23000},
        {"cpu": 52.968, "tj": 53.0},
        [1_000_000_000] * 3,
    ),
    "a gpu without a clock": ("RAM 1/2MB GR3D_FREQ 61% VDD_IN -4mW", {"VDD_IN": -4}, {}, []),
    "nothing": ("", {}, {}, []),
}


@pytest.mark.parametrize("form", TEGRASTATS)
def test_a_line_of_tegrastats_is_read(form):
    line, rails, temperatures, clocks = TEGRASTATS[form]
    found = agent.parse_tegrastats(line)
    assert found == {"rails_mw": rails, "temperatures_c": temperatures, "gpu_hz": clocks}


def test_power_is_the_mean_of_the_rail_that_holds_all_others():
    lines = ["VDD_IN 4000mW/1mW VDD_SOC 1000mW/1mW", "VDD_IN 5000mW/1mW VDD_SOC 2000mW/1mW"]
    assert agent.summarise_tegrastats(lines)["power_w"] == 4.5
    assert agent.summarise_tegrastats(lines)["rails_w"] == {"VDD_IN": 4.5, "VDD_SOC": 1.5}


def test_rails_are_not_summed_to_a_power_that_no_sensor_measures():
    found = agent.summarise_tegrastats(["VDD_GPU_SOC 5139mW/1mW VDD_CPU_CV 700mW/1mW"])
    assert found["power_w"] is None
    assert found["rails_w"].keys() == {"VDD_GPU_SOC", "VDD_CPU_CV"}


@pytest.mark.parametrize(
    ("text", "pages"),
    [("nr_free_pages 9\npswpin 3\npswpout 4\n", 7), ("nr_free_pages 9\n", None),
     ("Pages free:   5.\nSwapins:      10.\nSwapouts:     2.\n", 12)],
)  # fmt: skip
def test_swapped_pages_are_counted(text, pages):
    assert agent.swapped_pages_of(text) == pages


def test_the_speed_limit_of_a_mac_is_read():
    assert agent.speed_limit_of("CPU_Scheduler_Limit \t= 100\n CPU_Speed_Limit \t= 70\n") == 70
    assert agent.speed_limit_of("Note: No thermal warning level has been recorded\n") is None


@pytest.mark.parametrize(
    ("compatible", "product", "cpuinfo", "arch", "emulated"),
    [("linux,dummy-virt", "", "", "aarch64", True),
     ("", "QEMU Standard PC (Q35 + ICH9, 2009)", "", "x86_64", True),
     ("", "", "model name\t: QEMU Virtual CPU version 2.5+\n", "x86_64", True),
     ("", "", X86, "aarch64", True),
     ("", "Dell Inc. XPS", X86, "x86_64", False),
     ("raspberrypi,5-model-b brcm,bcm2712", "", PI_5, "aarch64", False)],
)  # fmt: skip
def test_an_emulated_machine_is_told_from_a_real_one(compatible, product, cpuinfo, arch, emulated):
    assert agent.is_emulated(compatible, product, cpuinfo, arch) is emulated


def test_this_machine_says_something_of_itself():
    found = agent.machine()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["os"]
    look = agent.look()
    assert all(hz > 0 for hz in look["clocks_hz"])
    assert look["counters"].keys() == {"thermal throttling", "over-current throttling"}


RECIPE = {
    "trtexec": {
        version: {"build": ["{trtexec}", f"--for={version}"], "run": ["{trtexec}", "-x y"]}
        for version in ("8.6", "10", "11")
    }
}


@pytest.mark.parametrize(
    ("version", "commands"), [((8, 6), "8.6"), ((10, 3), "10"), ((10, 13), "10"), ((12, 0), "11")]
)
def test_a_recipe_has_commands_for_the_version_that_is_there(version, commands):
    assert agent.commands_of(RECIPE, "/usr/bin/trt exec", version) == [
        ("build", ["/usr/bin/trt exec", f"--for={commands}"]),
        ("run", ["/usr/bin/trt exec", "-x y"]),
    ]


def test_a_recipe_for_newer_versions_says_which():
    with pytest.raises(agent.Failure, match=r"has TensorRT 8\.5; the recipe needs 8\.6 or newer"):
        agent.commands_of(RECIPE, "trtexec", (8, 5))


@pytest.mark.parametrize(
    ("digits", "version"),
    [("8602", (8, 6)), ("8510", (8, 5)), ("100300", (10, 3)), ("101302", (10, 13)),
     ("110100", (11, 1)),
     ("10.3.0", (10, 3))],
)  # fmt: skip
def test_the_version_of_trtexec_is_read(digits, version):
    line = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] # trtexec --help"
    assert agent.trtexec_version_of(line) == version
    assert agent.trtexec_version_of("trtexec") is None

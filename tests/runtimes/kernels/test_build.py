"""The kernels as they are built: for which machines, where to, and clean of undefined behaviour."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnxruntime
import pytest

from export.errors import MeasureError
from runtimes.kernels import LIBRARY, library, why_not
from runtimes.kernels.compile import KERNELS, SOURCES, build
from tests.runtimes.kernels.conftest import HERE, need_compiler, need_program

CHECK = (HERE / "check.cpp",)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    need_compiler(platform.machine())
    folder = tmp_path_factory.mktemp("sanitized")
    return build(platform.machine(), folder / "check", sources=CHECK, shared=False, sanitize=True)


def test_no_kernel_reads_or_writes_beyond_its_tensors_nor_relies_on_undefined_behaviour(sanitized):
    found = run(sanitized)
    assert len(found.splitlines()) == len(KERNELS[platform.machine()])
    assert "portable: 139 cases" in found or "neon: 139 cases" in found


def test_the_sanitizer_sees_a_step_beyond(sanitized):
    done = subprocess.run([sanitized, "short"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def test_the_kernel_for_arm_computes_the_same_in_an_emulator(tmp_path):
    need_compiler("aarch64")
    program = build("aarch64", tmp_path / "check", sources=CHECK, shared=False)
    if platform.machine() == "aarch64":
        found = run(program)
    else:
        emulator = need_program("qemu-aarch64", "qemu-user")
        found = run(emulator, "-L", "/usr/aarch64-linux-gnu", program)
    assert found.startswith("neon: 139 cases")


@pytest.mark.parametrize("architecture", KERNELS)
def test_a_library_has_one_entry_and_loads_on_systems_older_than_this(tmp_path, architecture):
    need_compiler(architecture)
    need_program("readelf", "binutils")
    command = (sys.executable, "-m", "runtimes.kernels.build", "--arch", architecture)
    path = tmp_path / LIBRARY
    assert run(*command, "--out", tmp_path) == f"{path}\n"
    symbols = [line.split() for line in run("readelf", "-W", "--dyn-syms", path).splitlines()[4:]]
    defined = {words[7] for words in symbols if words[3] == "FUNC" and words[6].isdigit()}
    assert defined == {"RegisterCustomOps"}
    versions = {words[7].partition("@")[2] for words in symbols if "@GLIBC" in words[7]}
    newest = {"GLIBC": (2, 27), "GLIBCXX": (3, 4, 21)}  # of Ubuntu 18.04 and of Debian 9
    for version in versions:
        family, _, number = version.partition("_")
        assert tuple(map(int, number.split("."))) <= newest[family], version


# ---- where it is kept -------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_library_is_built_once_and_again_when_its_sources_change(cache, monkeypatch, tmp_path):
    need_compiler(platform.machine())
    path = library(platform.machine())
    assert path.is_relative_to(cache)
    monkeypatch.setenv("PATH", "")  # no compiler any more
    assert library(platform.machine()) == path
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES, sources)
    monkeypatch.setattr("runtimes.kernels.SOURCES", sources)
    assert library(platform.machine()) == path
    (sources / "tied_ffn.cpp").write_text("changed")
    assert library(platform.machine()) is None


def test_a_library_beside_the_sources_is_taken_first(cache, monkeypatch, tmp_path):
    shipped = tmp_path / "lib" / "aarch64" / LIBRARY
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"")
    monkeypatch.setattr("runtimes.kernels.SOURCES", tmp_path)
    assert library("aarch64") == shipped


def test_an_architecture_without_a_kernel_has_no_library(cache):
    assert library("riscv64") is None
    assert why_not("riscv64") == "there is no kernel for riscv64; there are x86_64, aarch64"


@pytest.mark.parametrize(
    ("architecture", "package"),
    [("x86_64", "g++"), ("aarch64", "g++-aarch64-linux-gnu")],
)
def test_without_a_compiler_there_is_no_library_and_the_package_is_named(
    cache, monkeypatch, architecture, package
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert library(architecture) is None
    words = f"there is no C++ compiler for {architecture}; run: apt-get install {package}"
    assert why_not(architecture) == words
    with pytest.raises(MeasureError, match=r"^the one-pass kernel cannot be built: there is no C"):
        build(architecture, cache / LIBRARY)


def test_a_compiler_that_fails_is_quoted_in_one_line_and_leaves_nothing(tmp_path):
    need_compiler(platform.machine())
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main() { return nowhere; }\n")
    with pytest.raises(MeasureError, match=r"cannot be built: .*error: .*nowhere") as caught:
        build(platform.machine(), tmp_path / "out" / "it", sources=(broken,), shared=False)
    assert "\n" not in str(caught.value)
    assert not Path(tmp_path / "out" / "it").exists()


# ---- in a wheel -------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Make a wheel of a checkout without the nets, as pip does where nothing can be fetched."""
    root = SOURCES.parents[1]
    checkout = tmp_path / "checkout"
    for name in ("export", "runtimes", "devices"):
        shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, checkout)

    def made(kernels):
        monkeypatch.setenv("WEIGHTSPACE_KERNELS", kernels)
        command = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
        folder = tmp_path / f"wheels{kernels}"
        done = subprocess.run(
            [*command, "--no-index", "--wheel-dir", folder, "."],
            cwd=checkout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return next(folder.glob("*.whl"), None), done.stdout + done.stderr

    return made


def libraries(path):
    return [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so")]


def test_a_wheel_is_pure_unless_the_library_is_asked_for(wheel, tmp_path):
    need_compiler(platform.machine())
    path, _ = wheel("build")
    assert path.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    (inside,) = libraries(path)
    assert inside == f"runtimes/kernels/lib/{platform.machine()}/{LIBRARY}"
    assert onnxruntime_takes(zipfile.ZipFile(path).extract(inside, tmp_path))
    path, _ = wheel("")  # in the same folder, and nothing of the other is left
    assert path.name.endswith("-py3-none-any.whl")
    assert libraries(path) == []


def onnxruntime_takes(path):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(path)  # raises where it cannot
    return True


def test_a_wheel_that_is_asked_for_the_library_and_cannot_compile_it_names_the_remedy(
    wheel, monkeypatch
):
    monkeypatch.setenv("PATH", "")
    path, said = wheel("build")
    assert path is None
    assert f"error: the one-pass kernel cannot be built: {why_not(platform.machine())}" in said

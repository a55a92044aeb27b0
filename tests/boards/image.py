"""Build the board's image from Debian's packages and the wheels that constraints.txt pins.

Nothing of the image is run while it is built: packages are unpacked, not installed, so that it
takes seconds on any processor. It needs root, for the owners of files. An image is kept in the
user's cache under the digest of all that it is made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILES = Path(__file__).parent / "files"
SUITE = "bookworm"  # its Python is 3.11, as the tag of the wheels says
BACKPORTS = f"{SUITE}-backports"
PYTHON_TAG = "311"
PACKAGES = (
    *(
        f"{name}/{BACKPORTS}"  # the first adbd that Debian has
        for name in (
            "adbd",
            "android-libbase",
            "android-libboringssl",
            "android-libcutils",
            "android-liblog",
        )
    ),
    "base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "gzip",
    "hostname", "iproute2", "kmod", "libc-bin", "libstdc++6", "linux-image-cloud-arm64", "mawk",
    "mksh", "mount", "openssh-server", "openssh-sftp-server", "procps", "python3", "sed", "tar",
    "toybox", "util-linux",
)  # fmt: skip
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
PLATFORMS = ("2_28", "2_27", "2_17")
MODULES = (  # of the kernel, in the order in which they need each other
    "failover", "net_failover", "virtio", "virtio_ring", "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev", "virtio_pci", "virtio_net", "virtio_blk",
)  # fmt: skip
TOYBOX = (  # what a phone's shell has for programs, as far as adb may need it
    "cat", "chmod", "cp", "cut", "date", "df", "echo", "env", "grep", "head", "id", "kill", "ls",
    "mkdir", "mv", "ps", "readlink", "rm", "sed", "setsid", "sha256sum", "sleep", "stat", "tail",
    "touch", "uname", "wc",
)  # fmt: skip
FIRST_STAGE = ("bin/bash", "bin/mount", "bin/kmod", "sbin/switch_root")
PROGRAMS = ("mmdebstrap", "arch-test", "cpio", "mke2fs", "ssh-keygen", "readelf")
USERS = ("shell:*:2000:2000::/data/local/tmp:/bin/sh", "pi:*:1000:1000::/home/pi:/bin/bash",
         "sshd:*:105:65534::/run/sshd:/usr/sbin/nologin")  # fmt: skip
DISK_MB = 900
IMAGES_KEPT = 3


class BoardError(Exception):
    """The board cannot be built, booted or reached."""


class MissingError(BoardError):
    """Something is not installed here; the message names it."""


@dataclass(frozen=True, slots=True)
class Image:
    """A folder with all that a board boots from, and the keys to reach it."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The first stage, which mounts the disk."""
        return self.folder / "initrd.gz"

    @property
    def disk(self) -> Path:
        """The root file system; booted boards never write to it."""
        return self.folder / "disk.ext4"

    @property
    def client_key(self) -> Path:
        """The private key that the board's users ``root`` and ``pi`` accept."""
        return self.folder / "id_ed25519"

    @property
    def host_key(self) -> str:
        """The board's public key, as it stands in a known_hosts file."""
        kind, key = (self.folder / "host_ed25519.pub").read_text().split()[:2]
        return f"{kind} {key}"


def cache_folder() -> Path:
    """Where images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "weightspace-board"


def build_image() -> Image:
    """Give the image, built now if its inputs changed or it is not there yet.

    Raises:
        MissingError: a program is missing, this is not root, or there is no mirror.
        BoardError: a step failed.
    """
    folder = cache_folder() / _digest()
    image = Image(folder)
    if folder.is_dir():
        return image
    _require_programs()
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _lock(cache_folder() / "lock"):
        if folder.is_dir():
            return image
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="building-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _build(Path(scratch) / "root", made)
            made.rename(folder)
            _forget_old_images()
    return image


def _forget_old_images() -> None:
    images = [path for path in cache_folder().iterdir() if (path / "disk.ext4").is_file()]
    for image in sorted(images, key=lambda path: path.stat().st_mtime)[:-IMAGES_KEPT]:
        shutil.rmtree(image)


def _digest() -> str:
    """Digest what the image is made from: this file, the files that go in, the wheels' versions."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(FILES.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(FILES)}\0".encode() + file.read_bytes())
    digest.update("\n".join(_pinned()).encode())
    return digest.hexdigest()[:16]


def _pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in WHEELS]


def _require_programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise MissingError(f"the board's image needs {', '.join(missing)}: see docs/board.md")
    if os.geteuid() != 0:
        raise MissingError("the board's image is built as root, for the owners of its files")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mirror() -> str:
    """Take Debian's mirror from the sources of this machine's own packages."""
    listed = _run(
        "apt-get", "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(SITE)",
        "Created-By: Packages",
    )  # fmt: skip
    for line in listed.splitlines():
        origin, component, site = line.split("|")
        if origin == "Debian" and component == "main" and "security" not in site:
            return site
    raise MissingError("the board's image needs a mirror of Debian in this machine's apt sources")


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise BoardError(f"{command[0]} failed: {'; '.join(last)}")
    return done.stdout


def _build(root: Path, made: Path) -> None:
    mirror = _mirror()
    _run(
        "mmdebstrap", "--quiet", "--mode=root", "--arch=arm64", "--variant=extract",
        f"--include={','.join(PACKAGES)}", SUITE, root,
        f"deb {mirror} {SUITE} main", f"deb {mirror} {BACKPORTS} main",
    )  # fmt: skip
    _add_wheels(root / "opt" / "site")
    next((root / "boot").glob("vmlinuz-*")).rename(made / "vmlinuz")
    _keep_modules(root)
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "boot"):
        shutil.rmtree(root / unused)
    _add_users(root)
    _add_keys(root, made)
    _add_files(root)
    _compile(root)
    _pack_first_stage(root, made)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, made / "disk.ext4",
         f"{DISK_MB}M")  # fmt: skip


def _add_wheels(site: Path) -> None:
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in PLATFORMS]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-compile", "--target", site, *platforms, "--platform=manylinux2014_aarch64",
        "--only-binary=:all:", "--python-version", PYTHON_TAG, "--implementation", "cp",
        "--constraint", ROOT / "constraints.txt", *WHEELS,
    )  # fmt: skip
    (site / "ai_edge_litert" / "libLiteRtWebGpuAccelerator.so").unlink(missing_ok=True)


def _compile(root: Path) -> None:
    """Compile Python's modules here where the version is the same: there it takes seconds."""
    if "".join(map(str, sys.version_info[:2])) == PYTHON_TAG:
        for folder in ("usr/lib/python3.11", "opt/site"):
            command = [sys.executable, "-m", "compileall", "-qq", "-j0", "-s", str(root), "-p", "/"]
            subprocess.run([*command, str(root / folder)], check=False, capture_output=True)


def _keep_modules(root: Path) -> None:
    """Keep the few modules of the kernel that the emulated hardware needs."""
    (root / "mods").mkdir()
    for name in MODULES:
        shutil.copy(next((root / "lib" / "modules").rglob(f"{name}.ko")), root / "mods")
    shutil.rmtree(root / "lib" / "modules")


def _add_users(root: Path) -> None:
    masters = root / "usr" / "share" / "base-passwd"
    users = (masters / "passwd.master").read_text()
    (root / "etc" / "passwd").write_text("\n".join((users.strip(), *USERS, "")))
    groups = (masters / "group.master").read_text().strip()
    (root / "etc" / "group").write_text(f"{groups}\npi:*:1000:\nshell:*:2000:\n")


def _add_keys(root: Path, made: Path) -> None:
    for name in ("id_ed25519", "host_ed25519"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "board", "-f", made / name)
    host = root / "etc" / "ssh" / "ssh_host_ed25519_key"
    shutil.copy(made / "host_ed25519", host)
    host.chmod(0o600)
    for home, owner in (("root", 0), ("home/pi", 1000)):
        folder = root / home / ".ssh"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "id_ed25519.pub", folder / "authorized_keys")
        (folder / "authorized_keys").chmod(0o600)
        (root / home).chmod(0o700)
        for place in (root / home, folder, folder / "authorized_keys"):
            os.chown(place, owner, owner)


def _add_files(root: Path) -> None:
    """Add what stands in ``files``: the start script, sshd's configuration, the named stubs."""
    for file in sorted(FILES.rglob("*")):
        if file.is_file():
            place = root / file.relative_to(FILES)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
            place.chmod(0o644 if place.suffix or "etc" in place.parts else 0o755)
    for name in ("proc", "sys", "dev", "run/sshd", "tmp", "data/local/tmp", "var/log", "small",
                 "readonly", "run", "mnt"):  # fmt: skip
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chown(root / "data" / "local" / "tmp", 2000, 2000)
    links = {"usr/bin/awk": "mawk", "bin/sh": "mksh"}
    links |= {f"system/bin/{name}": "/usr/bin/toybox" for name in TOYBOX}
    for name, to in links.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(to)
    for folder in ("usr/lib/python3", "usr/lib/python3.11"):
        for site in (root / folder).glob("dist-packages"):
            (site / "board.pth").write_text("/opt/site\n")


def _pack_first_stage(root: Path, made: Path) -> None:
    """Pack the few programs that mount the disk, and the libraries they need."""
    stage = root.parent / "stage"
    for name in ("bin", "lib", "proc", "sys", "dev", "mnt", "mods"):
        (stage / name).mkdir(parents=True)
    for program in FIRST_STAGE:
        shutil.copy(root / program, stage / "bin")
    (stage / "bin" / "insmod").symlink_to("kmod")
    for module in (root / "mods").glob("virtio*.ko"):
        shutil.copy(module, stage / "mods")
    shutil.copy(root / "lib" / "ld-linux-aarch64.so.1", stage / "lib")
    todo = [stage / "bin" / Path(program).name for program in FIRST_STAGE]
    while todo:
        for library in _needed(todo.pop()):
            place = stage / "lib" / library
            if not place.exists():
                found = next(
                    each for each in (*root.glob(f"lib/**/{library}"),
                                      *root.glob(f"usr/lib/**/{library}"))
                )  # fmt: skip
                shutil.copy(found, place)
                todo.append(place)
    shutil.copy(FILES.parent / "first_stage.sh", stage / "init")
    (stage / "init").chmod(0o755)
    with (made / "initrd.gz").open("wb") as packed:
        names = "\0".join(str(path.relative_to(stage)) for path in sorted(stage.rglob("*")))
        cpio = subprocess.run(
            ["cpio", "--null", "-o", "-H", "newc", "--quiet"],
            input=names.encode(), cwd=stage, capture_output=True, check=True,
        )  # fmt: skip
        subprocess.run(["gzip", "-1"], input=cpio.stdout, stdout=packed, check=True)


def _needed(binary: Path) -> list[str]:
    lines = _run("readelf", "-d", binary).splitlines()
    return [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]

"""An Android device, or any other that runs adbd, reached by the ``adb`` program.

The program and not a library: it alone passes on what the device says of a failed copy, keeps a
command's standard input open and its two outputs apart. It gives exit code 0 when the device is
lost in the middle of a command, so every command ends with a line of our own; one that does not
was cut off.
"""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from devices.device import Device
from devices.transports import Finished, OnLine, require_relative
from devices.transports.folder import FolderClaim
from export.errors import DeviceError, DeviceLostError, MissingExtraError
from export.manifest import sha256_of

_logger = logging.getLogger(__name__)

PARENT = "/data/local/tmp"  # the one folder of an Android device that programs may be run from
_TAIL_LINES = 50
_ANSWER_S = 30.0  # for what takes a device no time
_CONNECT_PAUSES_S = (0.0, 0.3, 1.0)  # before each try
_CONNECTING_S = 10.0
_COPY_S = 3600.0
_OF_ONE_DEVICE = {"shell", "push", "pull", "get-state"}
_PASSING = {"connecting", "authorizing"}
_REMEDIES = {
    "unauthorized": "unlock it and allow USB debugging for this computer on its screen",
    "authorizing": "unlock it and allow USB debugging for this computer on its screen",
    "offline": "unplug it and plug it in again, or connect it again",
    "connecting": "unplug it and plug it in again, or connect it again",
    "no permissions": (
        "give this user access to USB devices (a udev rule and the group plugdev), "
        "and plug it in again"
    ),
}
_LOST = re.compile(
    r"device '[^']*' not found|device (?:still )?offline|no devices/emulators found|"
    r"connection reset|protocol fault|device unauthorized|closed$",
    re.IGNORECASE | re.MULTILINE,
)
_FULL = "No space left on device"
# Words of the device about a failed copy -> what to do, in which {parent} stands for the folder.
_COPY_FAULTS = {
    _FULL: "free some of {parent}",
    "Read-only file system": "{parent} is read-only there",
    "Permission denied": "{parent} may not be written there",
}

# Ends all that runs of a folder: whatever a run starts has the folder's name in its environment,
# in whichever group it is.
_HOW_TO_END = """\
end() {
  tries=0
  while [ $tries -lt 20 ]; do
    tries=$((tries + 1)) found=
    for file in $(grep -lsF "WEIGHTSPACE_RUN=$1/" /proc/[0-9]*/environ 2>/dev/null); do
      file=${file#/proc/} pid=${file%/environ}
      [ "$pid" = $$ ] || { kill -9 "$pid" && found=yes; } 2>/dev/null
    done
    [ "$found" ] || break
  done
}
"""
_END = f'{_HOW_TO_END}end "$1"\n'
# Makes the folder, or puts what an interrupted run left in order, and prints its whole name.
_MAKE = f'mkdir -p "$1" && cd "$1" && set -- "$(pwd -P)" && echo "$1" || exit 1\n{_END}'
# Runs a program and says how it ended, after what it left has been ended, too. This shell is told
# when the link is gone, and ends the program then.
_RUN = f"""\
{_HOW_TO_END}
folder=$1 mark=$2; shift 2
cd "$folder" || exit 1
exec 3<&0
trap 'end "$folder"; exit 143' HUP INT TERM
setsid "$@" <&3 & child=$!
exec 3<&-
wait "$child"; code=$?
end "$folder"
printf '\\n%s %d\\n' "$mark" "$code"
"""
_SUMS = """\
for file; do
  [ -f "$file" ] && sum=$(sha256sum < "$file") || sum=-
  echo "${sum%% *}"
done
"""
# Renames "$1.part" if its digest is the one that is given.
_ACCEPT = """\
sum=$(sha256sum < "$1.part") && [ "${sum%% *}" = "$2" ] && mv -f "$1.part" "$1" && exit 0
rm -f "$1.part"
exit 1
"""


class AdbTransport:
    """Runs commands on a device by adb; see ``Transport``.

    Args:
        parent: the folder there in which the transport makes its own.
    """

    def __init__(self, device: Device, parent: str = PARENT) -> None:
        self.device = device
        self._serial = device.address.partition("://")[2]
        self._parent = parent
        self._program = ""
        self._folder = ""
        self._claim: FolderClaim | None = None

    def connect(self) -> None:
        """Choose the device and make the folder.

        Raises:
            MissingExtraError: there is no adb program.
        """
        if self._folder:
            return
        self._program = adb_program()
        self._serial = self._choose()
        self._claim = FolderClaim(f"adb://{self._serial}{self._parent}")
        folder = f"{self._parent}/{self._claim.name}"
        try:
            made = self._shell(_MAKE, folder)
            if made.returncode:
                raise DeviceError(
                    f"{self._name}: {folder} cannot be made: {self._fault(made.stderr)}"
                )
            self._folder = made.stdout.rstrip("\n")
        except BaseException:
            self._claim.release()
            raise

    def push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None = None) -> int:
        """Copy files into the folder."""
        for name in files:
            require_relative(name)
        places = {name: self._place(name) for name in files}
        folders = sorted({str(PurePosixPath(place).parent) for place in places.values()})
        self._checked('mkdir -p "$@"', *folders)
        there = self._checked(_SUMS, *places.values()).split()
        sent = 0
        for (name, file), old in zip(files.items(), there, strict=True):
            digest = sha256_of(file)
            if digest != old:
                self._send(name, file, digest)
                sent += file.stat().st_size
                if on_bytes:
                    on_bytes(sent)
        return sent

    def run(
        self, command: Sequence[str], *, timeout_s: float, on_line: OnLine | None = None
    ) -> Finished:
        """Run a command in the folder."""
        folder = self._place("").rstrip("/")
        mark = f"ended-{secrets.token_hex(8)}"
        line = f"export WEIGHTSPACE_RUN={shlex.quote(folder)}/; exec "
        process = subprocess.Popen(
            self._adb("shell", "-T", line + _script(_RUN, folder, mark, *command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C in a terminal is for this process to handle
        )
        errors: list[str] = []

        def read_errors() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                errors.append(line.rstrip("\n"))
                del errors[:-_TAIL_LINES]
                if on_line:
                    on_line(line.rstrip("\n"))

        timer = threading.Timer(timeout_s, process.kill)
        reader = threading.Thread(target=read_errors, daemon=True)
        timer.start()
        reader.start()
        ended = None
        try:
            assert process.stdout is not None
            output = process.stdout.read()
            ended = re.search(rf"\n{mark} (\d+)\r?\n\Z", output)
        finally:
            late = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()
            if ended is None:
                self._quietly(_END, folder)
        reader.join()
        if ended is not None:
            return Finished(int(ended[1]), output[: ended.start()], "\n".join(errors))
        if late:
            raise DeviceError(f"{self._name}: {command[0]} did not finish within {timeout_s:g} s")
        if self._state() != "device":
            raise self._lost(f"while {command[0]} ran")
        raise DeviceError(
            f"{self._name}: {command[0]} was ended from outside, or for want of memory: "
            f"{errors[-1] if errors else 'it said nothing'}"
        )

    def pull(self, name: str, to: Path) -> None:
        """Copy a file of the folder to here."""
        require_relative(name)
        place = self._place(name)
        digest = self._checked(_SUMS, place).strip()
        if digest == "-":
            raise DeviceError(f"{self._name}: {name} cannot be fetched: there is no such file")
        part = to.with_name(f"{to.name}.part")
        try:
            done = self._call("pull", place, str(part), timeout_s=_COPY_S)
            if done.returncode or not part.is_file():
                why = self._fault(done.stderr or done.stdout)
                raise DeviceError(f"{self._name}: {name} cannot be fetched: {why}")
            if sha256_of(part) != digest:
                raise self._lost(f"while {name} was fetched")
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """End what still runs and remove the folder, as far as the device can still be reached."""
        folder, self._folder = self._folder, ""
        claim, self._claim = self._claim, None
        try:
            if folder:
                self._shell(f'{_END}rm -rf "$1"', folder)
        except DeviceError as error:
            _logger.debug("left behind: %s", error)
        finally:
            if claim is not None:
                claim.release()

    @property
    def _name(self) -> str:
        return self.device.name or self.device.address

    def _place(self, name: str) -> str:
        if not self._folder:
            raise DeviceError(f"{self._name}: the transport is not connected")
        return f"{self._folder}/{name}"

    def _choose(self) -> str:
        """Find the device among those attached, and wait until it is ready.

        Raises:
            DeviceError: there is none or more than one, or it cannot be used as it is.
        """
        states = self._attached()
        reached = ""
        if re.fullmatch(r"\S+:\d+", self._serial) and states.get(self._serial) != "device":
            self._call("disconnect", self._serial)
            for pause in _CONNECT_PAUSES_S:  # another process may have disconnected meanwhile
                time.sleep(pause)
                reached = self._call("connect", self._serial).stdout.strip()
                if self._serial in (states := self._attached()):
                    break
        serial = self._serial or (next(iter(states)) if len(states) == 1 else "")
        end = time.monotonic() + _CONNECTING_S
        while states.get(serial) in _PASSING and time.monotonic() < end:
            time.sleep(0.2)
            states = self._attached()
        attached = "; ".join(f"{each} ({state})" for each, state in states.items()) or "none"
        if not serial:
            what = "no device is attached; attach one and allow USB debugging on it"
            several = f"several devices are attached; name one as adb://SERIAL: {attached}"
            raise DeviceError(f"adb: {several if states else what}")
        if serial not in states:
            why = reached.rpartition(": ")[2] if reached.startswith(("failed", "cannot")) else ""
            raise DeviceError(
                f"adb: {serial} is not attached{f' ({why})' if why else ''}; attached: {attached}"
            )
        if states[serial] != "device":
            raise DeviceError(f"adb: {serial} is {states[serial]}; {remedy_of(states[serial])}")
        return serial

    def _attached(self) -> dict[str, str]:
        listed = self._call("devices")
        if listed.returncode:
            raise DeviceError(f"adb does not work here: {_last_line(listed.stderr)}")
        return parse_devices(listed.stdout)

    def _state(self) -> str:
        try:
            return self._call("get-state").stdout.strip()
        except DeviceError:
            return ""

    def _send(self, name: str, file: Path, digest: str) -> None:
        place = self._place(name)
        accepted = False
        try:
            done = self._call("push", str(file.resolve()), f"{place}.part", timeout_s=_COPY_S)
            if done.returncode:
                said = done.stderr or done.stdout
                if _FULL in said:
                    raise self._no_space(file)
                raise DeviceError(f"{self._name}: {name} cannot be sent: {self._fault(said)}")
            accepted = self._shell(_ACCEPT, place, digest).returncode == 0
            if not accepted:
                raise DeviceError(
                    f"{self._name}: {name} arrived damaged or was not kept; try again"
                )
        finally:
            if not accepted:
                self._quietly('rm -f "$1"', f"{place}.part")

    def _quietly(self, script: str, *arguments: str) -> None:
        try:
            self._shell(script, *arguments)
        except DeviceError as error:
            _logger.debug("not tidied up: %s", error)

    def _checked(self, script: str, *arguments: str) -> str:
        done = self._shell(script, *arguments)
        if done.returncode:
            raise DeviceError(f"{self._name}: {self._fault(done.stderr)}")
        return done.stdout

    def _shell(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a few lines of the device's shell.

        Raises:
            DeviceLostError: the device is gone, or went before the last of them.
        """
        mark = f"ended-{secrets.token_hex(8)}"
        line = f"{_script(script, *arguments)}; echo {mark} $?"
        done = self._call("shell", "-T", line)
        output, found, code = done.stdout.rpartition(f"{mark} ")
        if not found:
            raise self._lost(f"({_last_line(done.stderr)})" if done.stderr.strip() else "")
        return subprocess.CompletedProcess(done.args, int(code), output, done.stderr)

    def _call(
        self, *arguments: str, timeout_s: float = _ANSWER_S
    ) -> subprocess.CompletedProcess[str]:
        """Run adb to its end.

        Raises:
            DeviceLostError: the device is gone, or does not answer.
        """
        try:
            done = subprocess.run(
                self._adb(*arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise self._lost(f"(no answer within {timeout_s:g} s)") from error
        if done.returncode and _LOST.search(done.stderr):
            raise self._lost(f"({_last_line(done.stderr)})")
        return done

    def _adb(self, *arguments: str) -> list[str]:
        own = arguments[0] in _OF_ONE_DEVICE
        return [self._program, *(("-s", self._serial) if own else ()), *arguments]

    def _lost(self, when: str) -> DeviceLostError:
        return DeviceLostError(
            f"{self._name}: the link broke{f' {when}' if when else ''}; "
            "check its cable or network, and try again"
        )

    def _no_space(self, file: Path) -> DeviceError:
        size_mb = file.stat().st_size / 1e6
        return DeviceError(
            f"{self._name}: no space left in {self._folder} (needs {size_mb:.1f} MB)"
        )

    def _fault(self, said: str) -> str:
        """Give what the device said, and what to do about it where that is known."""
        for words, remedy in _COPY_FAULTS.items():
            if words in said:
                return f"{words.lower()}: {remedy.format(parent=self._parent)}"
        return _last_line(said)


def adb_program() -> str:
    """Find adb: on the search path, or as the package adbutils brings it.

    Raises:
        MissingExtraError: it is in neither place.
    """
    found = shutil.which("adb")
    if found is not None:
        return found
    try:
        import adbutils
    except ImportError as error:
        raise MissingExtraError.of("adbutils", "adb") from error
    return str(adbutils.adb_path())


def parse_devices(listed: str) -> dict[str, str]:
    """Read what ``adb devices`` prints: serial to state."""
    lines = listed.partition("List of devices attached")[2].splitlines()
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    return {serial.strip(): state.strip() for serial, state in pairs}


def remedy_of(state: str) -> str:
    """Say what to do about a device that is attached and cannot be used."""
    for words, remedy in _REMEDIES.items():
        if state.startswith(words):
            return remedy
    return "start its normal system"


def _script(script: str, *arguments: str) -> str:
    """Write a script with its arguments as one line for the device's shell."""
    return shlex.join(["sh", "-c", script, "sh", *arguments])


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return re.sub(r"^(?:adb: )?error: ", "", lines[-1]) if lines else "it said nothing"


def open_transport(device: Device) -> AdbTransport:
    """Make the transport of an adb device."""
    return AdbTransport(device)

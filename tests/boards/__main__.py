"""Build and boot the board by hand: ``python -m tests.boards``; Ctrl-C switches it off."""

from __future__ import annotations

import argparse
import sys

from tests.boards.emulator import boot
from tests.boards.image import BoardError, build_image


def main() -> int:
    """Build the image, or boot the board and tell how it is reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.boards", description=__doc__)
    parser.add_argument("--build", action="store_true", help="only build the image")
    parser.add_argument("--cpu", default="cortex-a76", help="of a Raspberry Pi 5; see QEMU's -cpu")
    parser.add_argument("--memory", type=int, default=1024, help="in MB", metavar="MB")
    asked = parser.parse_args()
    try:
        if asked.build:
            print(build_image().folder)
            return 0
        with boot(cpu=asked.cpu, memory_mb=asked.memory) as board:
            options = " ".join(board.ssh_options)
            print(f"ssh {options} -p {board.ssh_port} pi@127.0.0.1   # or root")
            print(f"adb connect {board.adb_serial}   # then: adb -s {board.adb_serial} shell")
            print("Ctrl-C switches it off", flush=True)
            board.process.wait()
    except BoardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An emulated ARM64 board: Debian in QEMU, with sshd, adbd, Python and both runtimes."""

"""``python -m export``: hands over to the command line."""

from devices.cli import export_main

if __name__ == "__main__":
    export_main()

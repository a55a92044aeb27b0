"""One report, shown as a terminal table, JSON and one HTML page."""

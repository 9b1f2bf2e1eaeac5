"""`octavo bench`: load over HTTP, offline runs, the machine's limits, reports."""

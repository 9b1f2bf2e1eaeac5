"""What the steps share: their results, models to run, timing, and driving an engine without a server."""

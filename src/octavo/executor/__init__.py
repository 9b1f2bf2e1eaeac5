"""One worker here, or many: who executes a batch."""

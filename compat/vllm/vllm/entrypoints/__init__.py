"""vLLM's entry points, by the names that commands use."""

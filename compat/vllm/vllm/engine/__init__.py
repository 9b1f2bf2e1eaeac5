"""vLLM's engine, by the names that programs import."""

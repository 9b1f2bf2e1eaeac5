"""Which tokens of which sequences run in a step."""

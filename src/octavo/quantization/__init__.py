"""How weights are stored: formats and their readers."""

"""Calls of tools in a model's text: how each family writes them, told from its chat template, and one incremental parser a format."""

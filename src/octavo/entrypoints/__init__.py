"""Module entry points: `python -m octavo.entrypoints.api_server`."""

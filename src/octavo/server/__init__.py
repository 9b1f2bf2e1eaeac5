"""The HTTP face: parse, authenticate, map errors, stream."""

"""Ollama's API, put as chats and texts."""

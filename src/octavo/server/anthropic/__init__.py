"""Anthropic's messages API, put as chats."""

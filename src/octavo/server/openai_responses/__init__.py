"""OpenAI's responses API, put as chats. Nothing is stored."""

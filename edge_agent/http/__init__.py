"""The OpenAI-compatible HTTP API of the edge agent; nothing outside this package knows FastAPI."""

"""The edge agent: drafts for its local users and serves them the OpenAI-compatible HTTP API."""

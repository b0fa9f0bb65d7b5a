"""What `/openapi.json` says about bodies that handlers read themselves, to bound them first."""

from typing import Any

from pydantic import BaseModel


def body_docs(body: type[BaseModel]) -> dict[str, Any]:
    """A route's documentation of its request body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body.model_json_schema()}}}}

"""The playground: one page at `/` that holds its style and its script, and may load nothing else."""

import base64
import hashlib
from importlib import resources
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

_FOLDER: Final = resources.files("edge_agent.http") / "playground"
_SCRIPTS: Final = ("stream.js", "trie.js", "timing.js", "answer.js", "page.js")


def playground_router() -> APIRouter:
    """The route."""
    router = APIRouter()
    page, policy = assemble()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }

    @router.get("/", include_in_schema=False)
    async def playground() -> Response:
        """A chat that shows where each token came from."""
        return Response(page, media_type="text/html", headers=headers)

    return router


def assemble() -> tuple[bytes, str]:
    """The page with its parts in their places, and the policy that allows these parts, its own API and nothing else."""
    style = (_FOLDER / "style.css").read_text("utf-8")
    script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    page = (_FOLDER / "index.html").read_text("utf-8")
    page = page.replace("/* style */", style).replace("/* script */", script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page.encode(), "; ".join(f"{name} {sources}" for name, sources in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

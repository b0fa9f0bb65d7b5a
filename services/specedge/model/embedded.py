"""Finds the embedded pair of models, in a checkout and in an installed package alike."""

from pathlib import Path
from typing import Literal

from specedge.errors import ModelLoadError

EMBEDDED_NAME = "demo"
Role = Literal["target", "draft"]


def resolve_model(name: str, role: Role) -> str:
    """The local folder for `demo`; any other name (a Hugging Face id or a folder) is returned as it is.

    Raises:
        ModelLoadError: the embedded pair is not part of this installation.
    """
    if name != EMBEDDED_NAME:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package = Path(__file__).resolve().parents[1]
    places = [package / "models" / role, package.parents[1] / "models" / role]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    raise ModelLoadError(
        f"{EMBEDDED_NAME}: this installation has no embedded {role} model (looked in {', '.join(map(str, places))}); "
        "name a Hugging Face id or a local folder"
    )

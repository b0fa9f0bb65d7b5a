"""The dashboards, one file each."""

from boards import cost, edges, overview, speculation, verifier
from panels import Json

BOARDS: dict[str, Json] = {
    "overview-and-slo": overview.BOARD,
    "speculation": speculation.BOARD,
    "verifier": verifier.BOARD,
    "edge-fleet-and-network": edges.BOARD,
    "cost": cost.BOARD,
}
"""By file name."""

"""What a run measures: the pace of the forwards, and for each pace which modes at which distance for how many users."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.speculation.deployment import Variant
from specedge_bench.pace.pace import Pace

AUTOREGRESSIVE = "autoregressive"
RTTS_MS = (0, 15, 60)
MODES = ("streamed", "off", "included", "excluded")
BATCH_TYPES = ("ready", "dynamic")
MANY_USERS = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """One point.

    Attributes:
        mode: `proactive.type` of the edge, or autoregressive: requests that ask not to speculate.
        batch_type: of the verifier.
        rtt_ms: added between edge and verifier.
        num_users: requests at a time.
    """

    mode: str
    batch_type: str
    rtt_ms: int
    num_users: int

    @property
    def edge_mode(self) -> str:
        return "streamed" if self.mode == AUTOREGRESSIVE else self.mode


@dataclass(frozen=True, slots=True)
class Section:
    """The cells of one deployment.

    Attributes:
        name: for the command line and the tables.
        pace: of its forwards; None leaves them as this machine makes them.
        temperature: of its requests.
        cells: what is measured.
        length_factor: how many times longer than usual a single user's answers are, where tokens come fast.
    """

    name: str
    pace: Pace | None
    temperature: float
    cells: tuple[Cell, ...]
    length_factor: int = 1

    def variants(self, max_budget: int) -> list[Variant]:
        """The edges that it needs."""
        names = dict.fromkeys((cell.edge_mode, cell.batch_type) for cell in self.cells)
        return [Variant(mode, batch_type, max_budget) for mode, batch_type in names]


def _cells(modes: Sequence[str], batch_types: Sequence[str]) -> tuple[Cell, ...]:
    alone = [Cell(mode, kind, rtt_ms, 1) for rtt_ms, kind, mode in product(RTTS_MS, batch_types, modes)]
    plain = [Cell(AUTOREGRESSIVE, "ready", rtt_ms, 1) for rtt_ms in RTTS_MS]
    together = [
        Cell(mode, "ready", rtt_ms, MANY_USERS)
        for rtt_ms, mode in product(RTTS_MS, ("streamed", "off", AUTOREGRESSIVE))
    ]
    return (*plain, *alone, *together)


SECTIONS = (
    Section("paced", Pace("30ms", "5ms"), 0.7, _cells(MODES, BATCH_TYPES)),
    Section("modelled", Pace("30ms", "5ms", "modelled"), 0.0, _cells(MODES, BATCH_TYPES)),
    Section("cpu", None, 0.7, _cells(("streamed", "off"), ("ready",)), length_factor=4),
)

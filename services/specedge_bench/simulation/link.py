"""One direction of the connection between an edge and its verifier, shaped as the bench's proxies shape it."""

from copy import copy

from specedge_bench.network.shape import Flow, Line, Shape
from specedge_bench.simulation.events import Action, EventQueue


class Link:
    """Carries messages as actions: one TCP stream on a line of its own.

    Args:
        shape: delay, jitter, rate and loss; the law is that of `specedge_bench.network.shape`.
        seed: of jitter and loss.
    """

    def __init__(self, events: EventQueue, shape: Shape, seed: int) -> None:
        self.num_bytes = 0
        self._events = events
        self._line = Line(shape, seed)
        self._flow = Flow(self._line)

    def another(self) -> "Link":
        """A further TCP stream on the same line, to somebody else."""
        link = copy(self)
        link.num_bytes, link._flow = 0, Flow(self._line)
        return link

    def send(self, num_bytes: int, arrived: Action) -> None:
        """Has an action run when a message sent now has arrived."""
        self.num_bytes += num_bytes
        self._events.at(self._flow.chunk_arrival_s(num_bytes, self._events.now_s), arrived)

"""What all parts of one simulation share: the dice, the clock, what happened, and what must not have happened."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from random import Random

from protocol_simulation.texts import Texts

MODELS = ("target", "another")
"""What verifiers may serve; the first is what they should."""

_HOPS_S = (*[0.0] * 12, *[0.0002] * 4, *[0.005] * 3, 0.08)
"""How long the event loop may take to hear of a thread."""


class Bridge:
    """From a thread to the event loop: calls arrive in order, a moment later."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._dice = world.fork()
        self._calls: deque[Callable[[], object]] = deque()

    def post(self, call: Callable[[], object]) -> None:
        """To be called on the loop."""
        self._calls.append(call)
        self._world.loop.call_later(self._dice.choice(_HOPS_S), self._next)

    def _next(self) -> None:
        self._calls.popleft()()


class World:
    """One seed.

    Args:
        seed: decides everything.
        prints: tell what happens while it happens.

    Attributes:
        counts: how often what happened.
        broken: the rules that were broken; the simulation ends with the first.
        has_failed: set with the first of them.
    """

    def __init__(self, seed: int, *, prints: bool = False) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.texts = {model: Texts(model) for model in MODELS}
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.lines: list[str] = []
        self.is_healed = False
        self.loop = asyncio.get_running_loop()
        self.has_failed = asyncio.Event()
        self._prints = prints

    @property
    def now_s(self) -> float:
        """Virtual time."""
        return self.loop.time()

    def fork(self) -> Random:
        """Dice of one part, so that it draws the same whatever others draw meanwhile."""
        return Random(self.dice.getrandbits(64))

    def note(self, kind: str, text: object = "") -> None:
        """Something happened."""
        self.counts[kind] += 1
        if self._prints:
            print(f"{self.now_s:9.4f} s  {kind:<28} {text}", flush=True)

    def fail(self, text: str) -> None:
        """A rule was broken."""
        self.broken.append(f"at {self.now_s:.4f} s: {text}")
        self.note("RULE BROKEN", text)
        self.has_failed.set()

    def check(self, holds: bool, text: str) -> None:
        """A rule."""
        if not holds:
            self.fail(text)

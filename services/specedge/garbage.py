"""Garbage collection of a process whose steps must be short and whose event loop must not stop."""

import gc

_YOUNG_OBJECTS = 20_000


def spare_steps() -> None:
    """Keep collections out of the way; to be called once everything is loaded.

    What has been loaded stays, so that no collection need look at it again: with a model's libraries that is some
    hundred milliseconds, in which nothing else runs. A step makes thousands of objects that die
    by reference count; with the interpreter's threshold of 700 nearly every step would pay for a collection that finds
    nothing.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)

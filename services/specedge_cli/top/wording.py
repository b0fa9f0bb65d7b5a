"""Numbers as a narrow column of a terminal shows them; None, for what is not known, is a dash."""

from collections.abc import Mapping
from typing import Final

NOTHING: Final = "-"
BAR_CELLS: Final = 12
_LEVELS: Final = "▁▂▃▄▅▆▇█"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """Three digits, or all of them in front of the point."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"


def bar(share: float | None) -> str:
    """A share of what there is, 0 to 1, as a bar and a number."""
    if share is None:
        return NOTHING
    filled = round(BAR_CELLS * min(max(share, 0.0), 1.0))
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {100 * share:3.0f} %"


def levels(shares: list[float]) -> str:
    """A bar for each share, one cell wide."""
    return "".join(_LEVELS[min(int(len(_LEVELS) * share), len(_LEVELS) - 1)] for share in shares) or NOTHING


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def traffic(bytes_per_s: float | None) -> str:
    if bytes_per_s is None:
        return NOTHING
    for unit, size in (("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.3g} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def ranked(rates: Mapping[str, float], most: int = 3) -> str:
    """The largest first, each with its name; the rest as one."""
    falling = sorted(rates.items(), key=lambda item: -item[1])
    shown = [f"{name} {number(rate)}" for name, rate in falling[:most]]
    if rest := sum(rate for _, rate in falling[most:]):
        shown.append(f"others {number(rest)}")
    return ", ".join(shown) or "0"


def parts(seconds: Mapping[str, float]) -> str:
    """What each part is of the whole."""
    total = sum(seconds.values())
    return ", ".join(f"{name} {percent(each / total)}" for name, each in sorted(seconds.items())) if total else NOTHING

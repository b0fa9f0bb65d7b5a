"""Named networks between an edge and a verifier."""

import json
import re
from dataclasses import asdict, dataclass, fields
from math import isfinite

from specedge.errors import SettingsError
from specedge_bench.network.shape import Shape

MAX_RTT_MS = 10_000.0
MAX_LOSS = 0.5
_BYTES_PER_MBIT = 125_000
_AD_HOC = re.compile(r"(?:rtt[- ]?(?P<after>\d+(?:\.\d+)?)|(?P<before>\d+(?:\.\d+)?))(?: ?ms)?")


class InvalidNetworkProfile(SettingsError):
    """A network profile is not known, or one of its values is out of range."""


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """A network as the edge sees it.

    Attributes:
        name: as in the report.
        rtt_ms: round-trip time without queue and jitter.
        jitter_ms: the largest deviation of one way from rtt_ms / 2.
        up_mbit_s: rate from the edge to the verifier; None is without limit.
        down_mbit_s: rate from the verifier to the edge; None is without limit.
        loss: probability that a packet is lost, each way.

    Raises:
        InvalidNetworkProfile: a value is out of range.
    """

    name: str
    rtt_ms: float
    jitter_ms: float = 0.0
    up_mbit_s: float | None = None
    down_mbit_s: float | None = None
    loss: float = 0.0

    def __post_init__(self) -> None:
        self._check("rtt_ms", 0.0, MAX_RTT_MS)
        self._check("jitter_ms", 0.0, MAX_RTT_MS)
        self._check("loss", 0.0, MAX_LOSS)
        for rate in ("up_mbit_s", "down_mbit_s"):
            if getattr(self, rate) is not None:
                self._check(rate, 0.001, 1e6)

    def _check(self, field: str, low: float, high: float) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise InvalidNetworkProfile(f"network profile {self.name!r}: {field} = {value!r} is not a finite number")
        if not low <= value <= high:
            raise InvalidNetworkProfile(
                f"network profile {self.name!r}: {field} = {value} is not between {low:g} and {high:g}"
            )

    @property
    def up(self) -> Shape:
        return self._shape(self.up_mbit_s)

    @property
    def down(self) -> Shape:
        return self._shape(self.down_mbit_s)

    def _shape(self, mbit_s: float | None) -> Shape:
        rate = None if mbit_s is None else mbit_s * _BYTES_PER_MBIT
        return Shape(self.rtt_ms / 2000, self.jitter_ms / 1000, rate, self.loss)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


PROFILES = {
    profile.name: profile
    for profile in (
        NetworkProfile("lan", 0.3),
        NetworkProfile("metro", 5.0),
        NetworkProfile("wan", 14.0),
        NetworkProfile("far", 60.0),
        NetworkProfile("home", 30.0, jitter_ms=3.0, up_mbit_s=20.0, down_mbit_s=100.0, loss=0.002),
    )
}


def network_profile(name: str) -> NetworkProfile:
    """A profile by its name, or one of a plain round-trip time: "rtt15", "rtt-15", "15ms", "15 ms", "rtt2.5".

    Raises:
        InvalidNetworkProfile: there is no such profile, or the time is out of range.
    """
    key = name.strip().lower()
    if key in PROFILES:
        return PROFILES[key]
    if match := _AD_HOC.fullmatch(key):
        rtt_ms = float(match["after"] or match["before"])
        return NetworkProfile(f"rtt{rtt_ms:g}", rtt_ms)
    raise InvalidNetworkProfile(
        f"unknown network profile {name!r}; known are {', '.join(PROFILES)}, and any round-trip time such as rtt15 (ms)"
    )


def profile_from_json(text: str) -> NetworkProfile:
    """What `NetworkProfile.to_json` wrote; a text that is not a JSON object is taken for a name.

    Raises:
        InvalidNetworkProfile: see there; the JSON is malformed; it has an unknown field or lacks one.
    """
    if not text.lstrip().startswith("{"):
        return network_profile(text)
    try:
        return NetworkProfile(**json.loads(text))
    except (ValueError, TypeError) as error:
        known = ", ".join(field.name for field in fields(NetworkProfile))
        raise InvalidNetworkProfile(f"network profile {text!r}: {error}; its fields are {known}") from None

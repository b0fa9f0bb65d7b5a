"""The systems that are compared, as settings of the real services."""

from dataclasses import dataclass

from specedge.errors import SettingsError

KINDS = ("autoregressive", "server-only", "specedge")
MODES = ("streamed", "included", "excluded", "off")
BATCH_TYPES = ("ready", "static", "dynamic")
GROWTH_PARAMETERS = ("max_budget", "max_beam_len", "max_branch_width", "max_n_beams")


class UnknownSystem(SettingsError):
    """No such system, mode or batch type; names what is known."""


@dataclass(frozen=True, slots=True)
class SystemVariant:
    """One system with its settings.

    Args:
        name: as the user wrote it; the first part of a cell's name.
        kind: one of KINDS; the verifier's `system`.
        mode: `proactive.type` of the edges.
        batch_type: of the verifier.
        growth: growth parameters of the edges that are not the edge's defaults, with their values.
    """

    name: str
    kind: str
    mode: str = "streamed"
    batch_type: str = "ready"
    growth: tuple[tuple[str, str], ...] = ()

    @property
    def drafts_at_edge(self) -> bool:
        """Whether an edge has a draft model; without one it is the HTTP front alone."""
        return self.kind == "specedge"

    @property
    def drafts_at_verifier(self) -> bool:
        """Whether the verifier has the draft model beside the target."""
        return self.kind == "server-only"

    def verifier_arguments(self, draft_model: str) -> list[str]:
        """The verifier's flags that make it this system."""
        arguments = ["--system", self.kind, "--batch-type", self.batch_type]
        return [*arguments, "--draft-model", draft_model] if self.drafts_at_verifier else arguments

    def edge_arguments(self, draft_model: str) -> list[str]:
        """The edge's flags that make it this system."""
        if not self.drafts_at_edge:
            return ["--draft-model", "none", "--lookup", "off"]
        growth = [part for name, value in self.growth for part in (f"--{name.replace('_', '-')}", value)]
        return ["--draft-model", draft_model, "--proactive.type", self.mode, *growth]


def parse_system(text: str) -> SystemVariant:
    """The system of a name `KIND` or `specedge:MODE[:BATCH_TYPE[:NAME=VALUE+NAME=VALUE...]]`.

    Raises:
        UnknownSystem: a part of the name is unknown; names the known ones.
    """
    kind, *rest = text.split(":")
    if kind not in KINDS:
        raise UnknownSystem(f"system {text!r} is unknown; known are {', '.join(KINDS)}")
    if rest and kind != "specedge":
        raise UnknownSystem(f"system {text!r}: only specedge has a mode and a batch type")
    if len(rest) > 3:
        raise UnknownSystem(f"system {text!r} has {len(rest) + 1} parts; it may have 4: specedge:MODE:BATCH:GROWTH")
    for value, known, what in zip(rest, (MODES, BATCH_TYPES), ("mode", "batch type"), strict=False):
        if value not in known:
            raise UnknownSystem(f"system {text!r}: {what} {value!r} is unknown; known are {', '.join(known)}")
    mode, batch_type = [*rest, *("streamed", "ready")[len(rest) :]][:2]
    return SystemVariant(text, kind, mode, batch_type, _growth(text, rest[2]) if len(rest) == 3 else ())


def _growth(system: str, text: str) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in text.split("+")]
    for name, _, value in pairs:
        if name not in GROWTH_PARAMETERS or not value.isdigit() or not int(value):
            raise UnknownSystem(
                f"system {system!r}: {text!r} is no growth; it must be NAME=NUMBER+NAME=NUMBER... with names of "
                f"{', '.join(GROWTH_PARAMETERS)} and numbers of at least 1"
            )
    return tuple((name, value) for name, _, value in pairs)

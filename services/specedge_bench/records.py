"""What one benchmark run leaves behind: its facts, and a row for every request, verifier step and cell.

Rule 1  A row is written as soon as its subject has ended, and never changed afterwards.
Rule 2  A row holds what was seen, in seconds since the start of its cell; every statistic is computed later.
Rule 3  `SCHEMA_VERSION` grows when a field is added, renamed or changes its meaning; older readers then refuse.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from specedge.errors import SpecEdgeError

SCHEMA_VERSION = 2


class BadRecord(SpecEdgeError):
    """A stored row does not have the fields its kind needs; names the row and the field."""


class SchemaTooNew(SpecEdgeError):
    """The folder was written by a newer release.

    Args:
        found: the version in the folder.
        where: the file it was read from.
    """

    def __init__(self, found: int, where: str) -> None:
        super().__init__(
            f"{where} has schema version {found}, this release reads versions up to {SCHEMA_VERSION}; "
            "use the release that wrote it, or a newer one"
        )


def cell_id(system: str, network: str, load: str) -> str:
    """The name of one cell, `system/network/load`."""
    return f"{system}/{network}/{load}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What holds for every cell of a run.

    `prices` are dollars per second of one GPU by its name; `bound` holds the inputs and results of the physical
    bound under the names `docs/benchmarking.md` lists.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    """`measured` or `simulated`."""
    created: str
    """ISO 8601 with the time zone."""
    machine: dict[str, str] = field(default_factory=dict)
    target_model: str
    draft_model: str
    network_method: str
    """`proxy`, `namespaces` or `modelled`."""
    options: dict[str, object] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    verifier_gpu: str = ""
    edge_gpu: str = ""
    num_skipped_prompts: int = 0
    bound: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as its client saw it; times are seconds since the cell's start."""

    cell: str
    system: str
    network: str
    load: str
    repetition: int
    edge: int
    user: int
    prompt: str
    """The prompt's id within its set."""
    num_prompt_tokens: int
    seed: int
    status: str
    """`ok` or `failed`."""
    error: str = ""
    scheduled_s: float
    """When the load wanted it sent; equal to `sent_s` in a closed loop."""
    sent_s: float
    bursts: tuple[tuple[float, int], ...] = ()
    """(arrival, number of tokens) of every group of tokens that arrived together."""
    finished_s: float
    finish_reason: str = ""
    num_tokens: int = 0
    """Answer tokens up to and including the end-of-sequence token."""
    digest: str = ""
    """SHA-256 of the answer's text, in hexadecimal."""
    num_cached_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """From when it should have been sent to its first token; NaN without one."""
        return self.bursts[0][0] - self.scheduled_s if self.bursts else math.nan

    @property
    def e2e_s(self) -> float:
        """From when it should have been sent to its end."""
        return self.finished_s - self.scheduled_s

    @property
    def tpot_s(self) -> float:
        """Mean seconds per token after the first burst; NaN where no later token exists."""
        later = sum(count for _, count in self.bursts[1:])
        return (self.bursts[-1][0] - self.bursts[0][0]) / later if later else math.nan

    def burst_gaps_s(self) -> list[float]:
        """The pause before every burst but the first: the per-burst inter-token latency."""
        return [later[0] - earlier[0] for earlier, later in zip(self.bursts, self.bursts[1:], strict=False)]

    def token_gaps_s(self) -> list[float]:
        """Per-token inter-token latency: a burst of k tokens after a pause of g counts as k gaps of g / k."""
        gaps: list[float] = []
        for gap, (_, count) in zip(self.burst_gaps_s(), self.bursts[1:], strict=True):
            gaps.extend([gap / count] * count)
        return gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of the verifier."""

    cell: str
    repetition: int
    started_s: float
    """Seconds since the cell's start."""
    num_sessions: int
    num_prefill: int
    """Prompt tokens in the step."""
    num_nodes: int
    """Draft tokens verified in the step."""
    num_accepted: int
    num_committed: int
    """Tokens released to clients: the accepted ones and the verifier's own."""
    num_moved: int
    """KV entries moved after acceptance."""
    schedule_ms: float = 0.0
    forward_ms: float = 0.0
    sample_ms: float = 0.0
    settle_ms: float = 0.0
    num_kv_tokens: int = 0
    """Whose keys and values the step read, summed over its sessions; 0 in runs of schema 1."""
    accepted_depths: tuple[int, ...] = ()
    """Accepted draft tokens of every session whose tree was verified."""
    queue_ms: tuple[float, ...] = ()
    """Wait of every session between being ready and this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """Totals of one cell in one repetition, from the services' own counters."""

    cell: str
    system: str
    network: str
    load: str
    repetition: int
    num_users: int
    num_edges: int
    wall_s: float
    """From the first request's start to the last one's end: what a reserved GPU is paid for."""
    num_failed: int = 0
    verifier_busy_s: float = 0.0
    draft_busy_s: float = 0.0
    """Summed over all edges, or of the verifier's own drafter."""
    num_verifications: int = 0
    num_trees: int = 0
    """Verifications that carried at least one draft token."""
    num_nodes_verified: int = 0
    num_accepted: int = 0
    accepted_by_depth: tuple[int, ...] = ()
    """Entry d: verified trees whose accepted path was longer than d draft tokens."""
    drafted_nodes: int = 0
    num_draft_steps: int = 0
    num_draft_rows: int = 0
    num_draft_session_steps: int = 0
    """Sessions of every draft step."""
    wasted: dict[str, int] = field(default_factory=dict)
    """Draft tokens that were of no use, by reason."""
    guesses_hit: int = 0
    guesses_missed: int = 0
    bytes_up: int = 0
    """Edge to verifier."""
    bytes_down: int = 0
    wire_bytes_up: int | None = None
    """With framing: what the proxies forwarded, or whole packets between namespaces; None where nobody counted."""
    wire_bytes_down: int | None = None
    rtt_ms_configured: float = 0.0
    rtt_ms_measured: float | None = None
    """The services' own measure; None where they took none."""
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    draft_on_verifier: bool = False
    """The draft model runs on the verifier's GPU, so no edge GPU is reserved."""


RecordT = TypeVar("RecordT", RunInfo, RequestRecord, StepRecord, CellRecord)


def to_json(record: RunInfo | RequestRecord | StepRecord | CellRecord) -> dict[str, Any]:
    """The record as a dictionary that `json.dumps` takes; NaN and infinities become None."""
    return {entry.name: _plain(getattr(record, entry.name)) for entry in dataclasses.fields(record)}


def from_json(kind: type[RecordT], row: Mapping[str, Any], where: str = "row") -> RecordT:
    """The record that `to_json` wrote.

    Args:
        kind: which record the row is.
        row: the decoded JSON object.
        where: file and line, for the error's text.

    Raises:
        SchemaTooNew: the row names a newer schema.
        BadRecord: a field is missing, unknown or of the wrong type.
    """
    version = row.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaTooNew(version, where)
    hints = _hints(cast(Any, kind))
    unknown = sorted(row.keys() - hints.keys())
    required = [entry.name for entry in dataclasses.fields(kind) if _is_required(entry)]
    missing = [name for name in required if name not in row]
    if unknown or missing:
        raise BadRecord(f"{where} is no {kind.__name__}: missing fields {missing}, unknown fields {unknown}")
    values: dict[str, Any] = {}
    for name, value in row.items():
        values[name] = _typed(value, hints[name])
        if not _fits(values[name], hints[name]):
            raise BadRecord(f"{where}: {name} is {value!r}, wanted {hints[name]}")
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _typed(value: Any, hint: Any) -> Any:
    """Lists become the tuples the records hold, and None becomes NaN where a number is wanted."""
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        items = typing.get_args(hint)
        inner = [items[0]] * len(value) if items[-1] is Ellipsis else list(items)
        return tuple(_typed(item, kind) for item, kind in zip(value, inner, strict=False))
    if hint is float:
        if value is None:
            return math.nan
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return any(_fits(_typed(value, kind) if value is not None else value, kind) for kind in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple)
    if origin is dict:
        return isinstance(value, dict)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)

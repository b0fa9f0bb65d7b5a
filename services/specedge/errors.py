"""The error tree shared by both processes.

SpecEdgeError
├── InvalidRequest        a value from outside is wrong; names the value and the limit (HTTP 400, INVALID_ARGUMENT)
│   └── UnknownModel      the named model is not served here (HTTP 404)
├── ProtocolError         a peer broke the wire contract (ends that session alone)
├── CapacityExceeded      a bounded queue is full (HTTP 503, RESOURCE_EXHAUSTED); retry later
│   └── TenantLimit       a tenant has all that it may have (HTTP 429, RESOURCE_EXHAUSTED); retry later
├── Unauthenticated       the verifier does not know who calls, or no longer (HTTP 503 at an edge, UNAUTHENTICATED)
├── VerifierUnavailable   no verifier answered before the deadline (HTTP 503, UNAVAILABLE); retry later
│   └── VerifierDraining  this one shuts down in good order; retry elsewhere at once
├── EdgeStopping          the edge agent ends before an answer does (HTTP 503); retry at another one, or later
├── EngineDead            the engine thread ended with an error or is stuck; the process must be replaced (exit code 70)
├── DrafterDead           the drafter's thread did; answers went on without drafts (exit code 70)
├── ModelLoadError        a model folder is missing, corrupt or does not fit; names the path and the reason
├── OutOfBlocks           the KV block pool has too few free blocks; handled by the scheduler, never shown to users
├── SettingsError         what the user asked for is unknown or not allowed: a flag, a variable, a settings file, and in
│                         specedge_bench a system, load, network, prompt set, run folder, ... (exit code 2)
├── PortBusy              a port the user asked for is taken (specedge_cli.ports)
├── DemoFailed            a process of the demo ended or never became ready (specedge_cli.demo)
└── SystemFailed, BadRecord, NothingToCompare, ...   why a measurement failed (modules of specedge_bench)

Foreign errors (gRPC, HTTP, safetensors) are mapped into this tree once, at the border where they enter.
"""


class SpecEdgeError(Exception):
    """Base of every error this project raises on purpose."""


class InvalidRequest(SpecEdgeError):
    """A value from outside is wrong.

    Args:
        message: names the offending value and the limit it broke.
        param: the field the value came in, as the client wrote it.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(InvalidRequest):
    """The named model is not served here."""


class ProtocolError(SpecEdgeError):
    """A peer broke the wire contract; its session ends, its neighbours do not notice."""


class CapacityExceeded(SpecEdgeError):
    """A bounded queue is full.

    Args:
        message: names the queue and its bound.
        retry_after_s: when trying again is worth it, in seconds.
        from_tokens: prompts of so many tokens or more meet the same bound at this moment; None: not known.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0, from_tokens: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.from_tokens = from_tokens


class TenantLimit(CapacityExceeded):
    """A tenant has all that it may have; the message names the limit."""


class Unauthenticated(SpecEdgeError):
    """A verifier does not know who calls, or knows the caller no longer."""


class VerifierUnavailable(SpecEdgeError):
    """No verifier answered before the deadline.

    Args:
        message: names the address and the last failure seen.
        retry_after_s: when trying again is worth it, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class VerifierDraining(VerifierUnavailable):
    """A verifier shuts down in good order: it takes no new session, and others do."""


class EdgeStopping(SpecEdgeError):
    """The edge agent was told to end, and an answer has not ended in the time it had for that."""


class EngineDead(SpecEdgeError):
    """The engine thread ended with an error, or is stuck."""


class DrafterDead(SpecEdgeError):
    """The drafter's thread ended with an error, or is stuck."""


class ModelLoadError(SpecEdgeError):
    """A model folder is missing, corrupt, or does not match its peer."""


class OutOfBlocks(SpecEdgeError):
    """The KV block pool has too few free blocks."""


class SettingsError(SpecEdgeError):
    """What the user asked for is unknown or not allowed; names it and what is known, one line for each."""

"""The verifier's settings."""

import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from specedge.drafting.settings import DrafterSettings
from specedge.settings import Port, PositiveInt, Seconds, file_setting
from specedge.tls.rules import UNIX, check_needs, check_plaintext, check_together, is_loopback_host


class VerifierSettings(DrafterSettings):
    """Everything that can be set on the verifier; see `specedge verifier --help`."""

    system: Literal["specedge", "server-only", "autoregressive"] = Field(
        default="specedge",
        description="specedge verifies what edges draft; server-only drafts beside the target, with draft_model; "
        "autoregressive takes no drafts (plain continuous batching)",
    )
    lookup: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="in system server-only, also draft, without computing anything, what followed the same tokens "
        "earlier in the text; auto does; edges that draft look up by a setting of their own",
    )
    max_len: PositiveInt | None = Field(
        default=None,
        description="longest prompt plus answer in tokens; auto is the model's own limit",
        json_schema_extra={"unset_word": "auto"},
    )
    port: Port = Field(default=50051, description="gRPC port; 0 takes a free one and logs it")
    tls_certificate_file: Path | None = file_setting(
        "PEM file of the verifier's certificate, followed by those between it and its authority; edges then speak TLS "
        "to it; read again when it changes"
    )
    tls_key_file: Path | None = file_setting("PEM file of the certificate's private key, without a passphrase")
    tls_client_ca_file: Path | None = file_setting(
        "PEM file of certificate authorities: only edges with a certificate of one of them are let in (mutual TLS)"
    )
    allow_plaintext: bool = Field(
        default=False, description="whether edges on other machines may be served without TLS"
    )
    stream_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="processes that serve edges' streams beside the engine's, all at one port; 0 serves them in the "
        "process of the engine, which is enough for some 100 sessions; see docs/scaling.md",
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="address on which /metrics is served, as plain HTTP"
    )
    metrics_port: Port | None = Field(
        default=9464,
        description="port on which /metrics is served; 0 takes a free one and logs it, off serves none",
        json_schema_extra={"unset_word": "off"},
    )

    tensor_parallel_size: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes (ranks) that hold the target together, each a part of its heads and of its MLPs; start "
        "so many of them by torchrun with the same settings; see docs/tensor-parallel.md",
    )
    rank_timeout_s: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        allow_inf_nan=False,
        description="with tensor_parallel_size above 1, seconds for which a rank may not answer before all others end; "
        "one that has died is noticed at once",
    )

    max_batch_size: int = Field(default=64, ge=1, le=4096, description="most sessions in one step")
    batch_type: Literal["ready", "static", "dynamic"] = Field(
        default="ready",
        description="which sessions a step takes: ready runs what is there and never waits; "
        "static waits for max_batch_size sessions; dynamic waits a bounded time for them",
    )
    max_num_batched_tokens: int = Field(
        default=1024,
        ge=16,
        le=2**20,
        description="most tokens in one step: prompt chunks, roots and draft nodes together",
    )
    max_waiting: int = Field(
        default=256,
        ge=0,
        le=2**20,
        description="most sessions that wait for a place; one more is refused, to be retried",
    )
    max_queued_tokens: int = Field(
        default=2**18,
        ge=1,
        le=2**30,
        description="most tokens of prompts that wait to be computed, all sessions together; what exceeds them is "
        "refused, to be retried; a prompt with nothing before it is taken however long it is",
    )
    max_predicted_ttft_s: Seconds = Field(
        default=20.0,
        description="seconds to the first token beyond which a session is refused, to be retried: predicted from the "
        "measured speed and what is before it; edges wait verifier_deadline_s, so better less than that",
    )
    max_live_nodes: int = Field(
        default=256,
        ge=0,
        le=65536,
        description="most live draft nodes kept for a session; the least probable go first",
    )
    max_tree_nodes: int = Field(
        default=64, ge=0, le=4096, description="most draft nodes of one session that a step verifies"
    )

    block_size: int = Field(default=16, ge=1, le=1024, description="tokens in a KV block")
    num_kv_blocks: PositiveInt | None = Field(
        default=None,
        description="KV blocks in the pool; auto sizes the pool from free memory and max_batch_size",
        json_schema_extra={"unset_word": "auto"},
    )
    kv_memory_fraction: float = Field(
        default=0.8,
        gt=0,
        le=0.95,
        allow_inf_nan=False,
        description="share of the device's free memory that KV blocks may take when num_kv_blocks is auto",
    )

    tenants_file: Path | None = Field(
        default=None,
        description="YAML file of the tenants that edges must be, as `specedge token` makes them, with their limits; "
        "read again when it changes; off serves everyone who can connect",
        json_schema_extra={"unset_word": "off", "allowed": "a file or off"},
    )
    step_log: Path | None = Field(
        default=None,
        description="file to which every engine step is appended as a line of JSON; off writes none",
        json_schema_extra={"unset_word": "off"},
    )
    open_timeout_s: Seconds = Field(
        default=10.0, description="seconds a new stream may stay silent before its opening message; then it is ended"
    )

    step_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="seconds after which a step counts as stuck, or ten times what the largest step is expected to "
        "take, if that is longer; then sessions are told to go elsewhere and the process ends with exit code 70; see "
        "docs/watchdogs.md",
    )

    @property
    def looks_up(self) -> bool:
        """Whether this verifier looks drafts up itself."""
        return self.system == "server-only" and self.lookup != "off"

    @model_validator(mode="after")
    def _link_is_private(self) -> Self:
        check_together(tls_certificate_file=self.tls_certificate_file, tls_key_file=self.tls_key_file)
        check_needs("tls_certificate_file", self.tls_certificate_file, tls_client_ca_file=self.tls_client_ca_file)
        check_plaintext(
            f"host = {self.host}",
            "tls_certificate_file and tls_key_file",
            "allow_plaintext",
            is_allowed=self.allow_plaintext or self.tls_certificate_file is not None or is_loopback_host(self.host),
        )
        return self

    @model_validator(mode="after")
    def _port_can_be_shared(self) -> Self:
        if self.stream_processes and self.host.startswith(UNIX):
            raise ValueError(
                f"stream_processes is {self.stream_processes}, and host is {self.host}: several processes share a TCP "
                "port, but no Unix socket; set host to an address, or stream_processes to 0"
            )
        if self.stream_processes and sys.platform != "linux":
            raise ValueError(
                f"stream_processes is {self.stream_processes}, and only on Linux does each of several processes at one "
                "port get its part of the connections; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _target_is_divisible(self) -> Self:
        if self.tensor_parallel_size > 1 and self.engine == "native":
            raise ValueError(
                f"engine native is not divided among ranks, and tensor_parallel_size is {self.tensor_parallel_size}; "
                "set engine to auto, lean or transformers"
            )
        return self

    @model_validator(mode="after")
    def _nodes_fit(self) -> Self:
        if self.max_tree_nodes > self.max_live_nodes:
            raise ValueError(
                f"max_tree_nodes ({self.max_tree_nodes}) is above max_live_nodes ({self.max_live_nodes}): a step "
                "cannot verify more nodes than a session may keep"
            )
        if self.system == "server-only" and self.draft_model is None:
            raise ValueError("system server-only drafts beside the target, and draft_model is none")
        if self.lookup == "on" and not self.looks_up:
            raise ValueError(
                f"lookup is on, but a verifier of system {self.system} drafts nothing itself; use server-only, or set "
                "lookup to auto or off"
            )
        return self

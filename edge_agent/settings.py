"""The edge agent's settings. Growth parameters and proactive modes keep their published names."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints, model_validator
from pydantic.config import JsonDict
from pydantic_settings import NoDecode

from edge_agent.verifier_addresses import check_addresses, plaintext_hosts
from specedge.drafting.settings import DrafterSettings
from specedge.settings import Port, PositiveInt, Seconds, SettingsGroup, file_setting
from specedge.tls.rules import check_needs, check_plaintext, check_together, is_loopback_host

_SAME: JsonDict = {"unset_word": "same"}


def _split_at_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s,*]+)$")]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split_at_commas)]


class ProactiveSettings(SettingsGroup):
    """How the edge drafts while a verification is under way."""

    type: Literal["streamed", "included", "excluded", "off"] = Field(
        default="streamed",
        description="streamed drafts on without pause and sends nodes as they grow; included and excluded guess one "
        "outcome and grow from it by the remaining depth or in full; off drafts in synchronous rounds",
    )
    max_n_beams: PositiveInt | None = Field(
        default=None, description="max_n_beams of a proactive growth phase", json_schema_extra=_SAME
    )
    max_beam_len: PositiveInt | None = Field(
        default=None, description="max_beam_len of a proactive growth phase", json_schema_extra=_SAME
    )
    max_branch_width: PositiveInt | None = Field(
        default=None, description="max_branch_width of a proactive growth phase", json_schema_extra=_SAME
    )
    max_budget: PositiveInt | None = Field(
        default=None, description="max_budget of a proactive growth phase", json_schema_extra=_SAME
    )


class EdgeSettings(DrafterSettings):
    """Everything that can be set on the edge agent; see `specedge edge --help`."""

    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        description="model name in the HTTP API; auto is the name the verifier gives",
        json_schema_extra={"unset_word": "auto"},
    )
    verifier_address: Annotated[str, AfterValidator(check_addresses)] = Field(
        default="127.0.0.1:50051",
        description="the verifier's gRPC address, or those of several that serve the same: answers go to less loaded "
        "ones and move when one is lost; see docs/failover.md",
        json_schema_extra={
            "allowed": "HOST:PORT or unix:PATH, or up to 64 of them with commas, dns:NAME:PORT or file:PATH"
        },
    )
    verifier_ca_file: Path | None = file_setting(
        "PEM file of certificate authorities: the verifier is asked by TLS and must have a certificate of one of them; "
        "off asks it in plain text"
    )
    verifier_certificate_file: Path | None = file_setting(
        "PEM file of the certificate that this edge shows to the verifier; read again when it changes"
    )
    verifier_key_file: Path | None = file_setting("PEM file of that certificate's private key, without a passphrase")
    verifier_name: str | None = Field(
        default=None,
        min_length=1,
        description="name that the verifier's certificate must have; auto is the host in verifier_address, also of "
        "dns:NAME:PORT",
        json_schema_extra={"unset_word": "auto"},
    )
    allow_plaintext: bool = Field(
        default=False, description="whether a verifier on another machine may be asked without TLS"
    )
    verifier_token: SecretStr | None = Field(
        default=None,
        description="token that makes this edge a tenant of the verifier, as `specedge token` makes it; everybody on "
        "this machine may see a flag, so better the variable or verifier_token_file",
        json_schema_extra={"unset_word": "off", "allowed": "a token or off"},
    )
    verifier_token_file: Path | None = Field(
        default=None,
        description="file that holds this token alone; read again when it changes",
        json_schema_extra={"unset_word": "off", "allowed": "a file or off"},
    )

    port: Port = Field(default=8000, description="HTTP port; 0 takes a free one and logs it")
    tls_certificate_file: Path | None = file_setting(
        "PEM file of the certificate of the HTTP API, which then is HTTPS; read again when it changes"
    )
    tls_key_file: Path | None = file_setting("PEM file of the API certificate's private key, without a passphrase")
    allow_plaintext_http: bool = Field(
        default=False, description="whether clients on other machines may be served without HTTPS"
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="address on which /metrics is served, as plain HTTP"
    )
    metrics_port: Port | None = Field(
        default=9465,
        description="port on which /metrics is served, apart from the API; 0 takes a free one and logs it, off serves "
        "none",
        json_schema_extra={"unset_word": "off"},
    )
    public_metrics: bool = Field(default=False, description="whether /metrics is at the API's port as well")

    proactive: ProactiveSettings = Field(default_factory=lambda: ProactiveSettings())

    lookup: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="also draft, without computing anything, what followed the same tokens earlier in the text or in a "
        "request's prediction; auto does so without a draft model and in proactive.type streamed; the published modes "
        "draft as published",
    )

    max_new_tokens: PositiveInt | None = Field(
        default=None,
        description="answer length in tokens for requests that name none; auto is what the context has left",
        json_schema_extra={"unset_word": "auto"},
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="temperature for requests that name none; auto is the target's generation_config",
        json_schema_extra={"unset_word": "auto"},
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**64 - 1,
        description="seed for requests that name none; random draws a new one for each",
        json_schema_extra={"unset_word": "random"},
    )

    reasoning_parser: Literal["auto", "think", "none"] = Field(
        default="auto",
        description="whether chat answers are split into reasoning_content and content: think splits at <think> tags; "
        "auto does so if the target's chat template knows them",
    )

    tool_parser: Literal["auto", "hermes", "llama"] = Field(
        default="auto",
        description="how the target writes tool calls: hermes is <tool_call> tags (also Qwen), llama is bare JSON "
        "objects; auto is what its chat template shows",
    )

    verifier_deadline_s: Seconds = Field(
        default=30.0, description="how long a request survives without a verifier before its user gets an error"
    )
    drafter_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="seconds after which a draft step counts as stuck; then running answers go on without drafts and "
        "have drain_timeout_s to end, and the process ends with exit code 70; see docs/watchdogs.md",
    )
    draft_only: Literal["off", "when_unreachable"] = Field(
        default="off",
        description="when_unreachable lets the draft model answer alone, marked as such, requests that come while no "
        "verifier can be reached; its texts are not the target model's; see docs/draft-only.md",
    )
    journal_dir: Path | None = Field(
        default=None,
        description="folder of the journal: answers to requests with an Idempotency-Key or X-Conversation-Id are "
        "recorded there, encrypted, and can be taken up after they broke off; needs journal_key_file; see "
        "docs/journal.md",
        json_schema_extra={"unset_word": "off", "allowed": "a folder or off"},
    )
    journal_key_file: Path | None = file_setting(
        "file of the key that encrypts the journal: 32 bytes in base64, as `openssl rand -base64 32` makes them"
    )
    journal_max_mib: int = Field(
        default=256, ge=1, le=2**20, description="most MiB on disk of the journal; the oldest answers go first"
    )
    journal_max_age_s: float = Field(
        default=86400.0,
        gt=0,
        le=31 * 86400,
        allow_inf_nan=False,
        description="seconds after which an answer is removed from the journal, from when it was last written",
    )
    slo_ttft_s: float = Field(
        default=1.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="time to first token, in seconds, within which an answer meets the SLO that /metrics count",
    )
    slo_itl_s: float = Field(
        default=0.1,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="mean time per further token, in seconds, within which an answer meets that SLO",
    )
    max_concurrent_requests: int = Field(
        default=256, ge=1, le=65536, description="most requests served at a time; one more gets 503 with Retry-After"
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="YAML file of the API keys that requests need, as `specedge key` makes them; off is that none is "
        "needed",
        json_schema_extra={"unset_word": "off", "allowed": "a file or off"},
    )
    cors_origins: Origins | None = Field(
        default=None,
        description="origins of web pages that may use the API from a browser",
        json_schema_extra={"unset_word": "off", "allowed": "origins such as https://chat.example.org, *, or off"},
    )

    @property
    def allows_plaintext_link(self) -> bool:
        """Whether verifiers on other machines may be asked without TLS, or are asked with it."""
        return self.allow_plaintext or self.verifier_ca_file is not None

    @property
    def looks_up(self) -> bool:
        """Whether drafts are looked up as well as computed."""
        can = self.draft_model is None or self.proactive.type == "streamed"
        return can and self.lookup != "off"

    @model_validator(mode="after")
    def _links_are_private(self) -> Self:
        check_together(
            verifier_certificate_file=self.verifier_certificate_file, verifier_key_file=self.verifier_key_file
        )
        check_needs(
            "verifier_ca_file",
            self.verifier_ca_file,
            verifier_certificate_file=self.verifier_certificate_file,
            verifier_name=self.verifier_name,
        )
        for address in plaintext_hosts(self.verifier_address):
            check_plaintext(
                f"verifier_address = {address}",
                "verifier_ca_file",
                "allow_plaintext",
                is_allowed=self.allows_plaintext_link,
            )
        check_together(tls_certificate_file=self.tls_certificate_file, tls_key_file=self.tls_key_file)
        check_plaintext(
            f"host = {self.host}",
            "tls_certificate_file and tls_key_file",
            "allow_plaintext_http",
            is_allowed=self.allow_plaintext_http
            or self.tls_certificate_file is not None
            or is_loopback_host(self.host),
        )
        return self

    @model_validator(mode="after")
    def _draft_only_has_a_model(self) -> Self:
        if self.draft_only != "off" and self.draft_model is None:
            raise ValueError(f"draft_only is {self.draft_only} and draft_model is none: there is nothing to answer")
        return self

    @model_validator(mode="after")
    def _journal_is_encrypted(self) -> Self:
        check_together(journal_dir=self.journal_dir, journal_key_file=self.journal_key_file)
        return self

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.verifier_token is not None and self.verifier_token_file is not None:
            raise ValueError("verifier_token and verifier_token_file are both set; one of them is the token")
        return self

    @model_validator(mode="after")
    def _lookup_has_its_mode(self) -> Self:
        if self.lookup == "on" and not self.looks_up:
            raise ValueError(
                f"lookup is on, but proactive.type {self.proactive.type} drafts as published; use streamed, or set "
                "lookup to auto or off"
            )
        return self

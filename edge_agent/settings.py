"""The edge agent's settings. Growth parameters and proactive modes keep their published names."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from specedge.settings import Address, Port, PositiveInt, ProcessSettings, Seconds, SettingsGroup

_SAME: JsonDict = {"unset_word": "same"}


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


class EdgeSettings(ProcessSettings):
    """Everything that can be set on the edge agent; see `specedge edge --help`."""

    draft_model: str | None = Field(
        default="demo",
        min_length=1,
        description="draft model: a Hugging Face id, a local folder, demo (embedded), or none to draft nothing",
        json_schema_extra={"unset_word": "none"},
    )
    target_model: str = Field(
        default="demo",
        min_length=1,
        description="source of the target's tokenizer and chat template: a Hugging Face id, a local folder, or demo",
    )
    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        description="model name in the HTTP API; auto is the name the verifier gives",
        json_schema_extra={"unset_word": "auto"},
    )
    verifier_address: Address = Field(
        default="127.0.0.1:50051",
        description="the verifier's gRPC address",
        json_schema_extra={"allowed": "HOST:PORT"},
    )
    port: Port = Field(default=8000, description="HTTP port; 0 takes a free one and logs it")

    max_n_beams: int = Field(
        default=32, ge=1, le=1024, description="most nodes expanded in one draft forward for a session"
    )
    max_beam_len: int = Field(
        default=8, ge=1, le=64, description="most draft steps, so the greatest depth, of a growth phase"
    )
    max_branch_width: int = Field(default=4, ge=1, le=64, description="most children drafted for a node")
    max_budget: int = Field(default=64, ge=1, le=4096, description="most nodes of a session's draft tree")
    proactive: ProactiveSettings = Field(default_factory=lambda: ProactiveSettings())

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

    verifier_deadline_s: Seconds = Field(
        default=30.0, description="how long a request survives without a verifier before its user gets an error"
    )
    max_concurrent_requests: int = Field(
        default=256, ge=1, le=65536, description="most requests served at a time; one more gets 503 with Retry-After"
    )
    num_draft_slots: PositiveInt | None = Field(
        default=None,
        description="KV slots (tokens) of the draft model, shared by all sessions; auto sizes them from free memory",
        json_schema_extra={"unset_word": "auto"},
    )

    @model_validator(mode="after")
    def _width_fits(self) -> Self:
        if self.max_branch_width > self.max_budget:
            raise ValueError(
                f"max_branch_width ({self.max_branch_width}) is above max_budget ({self.max_budget}): a tree of "
                "max_budget nodes cannot hold that many children"
            )
        return self

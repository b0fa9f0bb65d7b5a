"""What the settings of both processes have in common: field types, bounds and the way each field is described.

A settings object is frozen and is built once per process, by `specedge.settings_sources.load_settings`; its constructor
reads nothing but its arguments, so a test or a composing module may also build one directly.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")]
Address = Annotated[str, StringConstraints(pattern=r"^(unix:\S+|(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):\d{1,5})$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+(/\S*)?$")]
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]

_UNSET_SPELLINGS = frozenset({"", "null", "~"})


def file_setting(description: str) -> Any:
    """A setting that names a file, or none by the word off."""
    return Field(
        default=None,
        description=description,
        json_schema_extra={"unset_word": "off", "allowed": "a file or off"},
    )


def unset_word(field: Any) -> str | None:
    """The word a user writes for `None` ("auto", "none", ...), or None where the field takes no such word."""
    extra = field.json_schema_extra
    return extra.get("unset_word") if isinstance(extra, dict) else None


class SettingsGroup(BaseModel):
    """Fields that belong together: a nested section of a settings class, or the class itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _normalise_words(cls, values: Any) -> Any:
        """Turn a field's word for "not set" into None, and refuse booleans where a number is meant."""
        if not isinstance(values, dict):
            return values
        normalised = {}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            word = unset_word(field) if field is not None else None
            if isinstance(value, bool):
                value = str(value).lower()
            if word is not None and isinstance(value, str) and value in _UNSET_SPELLINGS | {word}:
                value = None
            normalised[name] = value
        return normalised


class ProcessSettings(SettingsGroup, BaseSettings):
    """Settings that both processes have."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    device: Device = Field(
        default="auto",
        description="where the model runs; auto takes the first CUDA device, or the CPU where there is none",
        json_schema_extra={"allowed": "auto, cpu, cuda or cuda:N"},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="number format of weights, keys and values; auto is the checkpoint's own on CUDA and float32 on "
        "the CPU",
    )
    engine: Literal["auto", "native", "lean", "transformers"] = Field(
        default="auto",
        description="what computes the model: native is plain C for the CPU, lean is torch without transformers' model "
        "code, both for dense Llama, Qwen2, Qwen3 and Mistral models; auto is native on the CPU where there is a C "
        "compiler, else lean, and transformers for every other model",
    )
    attention: Literal["auto", "sdpa", "triton", "flash"] = Field(
        default="auto",
        description="what computes attention: sdpa runs everywhere, triton and flash on CUDA with engine lean; auto is "
        "triton there unless it fails its self-test, else sdpa; engine native has its own",
    )
    graph_memory_mib: int = Field(
        default=2048,
        ge=0,
        le=2**20,
        description="most device memory, in MiB, that the CUDA graphs of a model may take (engine lean, attention "
        "triton); 0 records none",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every IPv4 interface"
    )
    drain_timeout_s: Seconds = Field(
        default=30.0, description="after SIGTERM, seconds in which running requests may finish before they are ended"
    )
    num_threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads for model execution; auto takes half of the cores",
        json_schema_extra={"unset_word": "auto"},
    )
    price_per_hour: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="dollars that an hour of this process's device costs, shown in /metrics so that dashboards know "
        "what a token costs",
        json_schema_extra={"unset_word": "unknown"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log record that is printed"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="how log records are printed: json is one object a line, text is for people; auto is text on a "
        "terminal, else json",
    )
    pad_frames: int | None = Field(
        default=None,
        ge=64,
        le=65536,
        description="bytes to a multiple of which every message of an answer's stream to the other process is padded, "
        "so that its length tells nothing; 256 holds any verdict without log-probabilities; see docs/security.md",
        json_schema_extra={"unset_word": "off"},
    )
    frame_interval_ms: float = Field(
        default=0,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
        description="milliseconds between messages of an answer's stream to the other process: one leaves in each "
        "interval, and padding where there is none, so that its time tells nothing; 0 sends at once; needs pad_frames",
    )
    traces_endpoint: Url | None = Field(
        default=None,
        description="where OpenTelemetry traces are sent (OTLP over HTTP), such as "
        "http://localhost:4318/v1/traces; off sends none; needs the extra `tracing`",
        json_schema_extra={"unset_word": "off"},
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *args: Any, **kwargs: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The constructor reads its arguments only; other sources are read by `load_settings`."""
        return (init_settings,)

    @model_validator(mode="after")
    def _paced_frames_are_padded(self) -> Self:
        if self.frame_interval_ms and self.pad_frames is None:
            raise ValueError(
                f"frame_interval_ms is {self.frame_interval_ms:g} and pad_frames is off: frames at even times still "
                "tell by their length; set pad_frames, such as to 256"
            )
        return self

    @property
    def graph_bytes(self) -> int:
        """`graph_memory_mib` in bytes."""
        return self.graph_memory_mib * 2**20

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**{**self.model_dump(), **changes})

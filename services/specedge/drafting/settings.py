"""The settings of whatever process drafts: the edge agent, and a verifier that drafts for itself."""

from typing import Literal, Self

from pydantic import Field, model_validator

from specedge.drafting.growth import GrowthSettings
from specedge.settings import PositiveInt, ProcessSettings


class DrafterSettings(ProcessSettings):
    """Which target, which draft model for it, and how its trees grow. Growth parameters keep their published names."""

    target_model: str = Field(
        default="demo",
        min_length=1,
        description="target model: a Hugging Face id, a local folder, or demo (embedded); an edge reads only its "
        "tokenizer and chat template",
    )
    draft_model: str | None = Field(
        default="demo",
        min_length=1,
        description="draft model: a Hugging Face id, a local folder, demo (embedded), or none for no draft model",
        json_schema_extra={"unset_word": "none"},
    )
    draft_quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="rounds the weights of the draft model's layers when they are loaded: it takes less memory and "
        "guesses a little worse, and no text changes; needs the extra 'quantized' (torchao); engine auto is then lean "
        "or transformers, and dtype auto is bfloat16 for int4",
    )
    max_n_beams: int = Field(
        default=32, ge=1, le=1024, description="most nodes expanded in one draft forward for a session"
    )
    max_beam_len: int = Field(
        default=8, ge=1, le=64, description="most draft steps, so the greatest depth, of a growth phase"
    )
    max_branch_width: int = Field(default=4, ge=1, le=64, description="most children drafted for a node")
    max_budget: int = Field(default=64, ge=1, le=4096, description="most nodes of a session's draft tree")
    num_draft_slots: PositiveInt | None = Field(
        default=None,
        description="KV slots (tokens) of the draft model, shared by all sessions; auto: 65536 on an edge, as many as "
        "the target has on a verifier",
        json_schema_extra={"unset_word": "auto"},
    )

    @property
    def growth(self) -> GrowthSettings:
        """How the trees that are sent grow."""
        return GrowthSettings(
            max_n_beams=self.max_n_beams,
            max_beam_len=self.max_beam_len,
            max_branch_width=self.max_branch_width,
            max_budget=self.max_budget,
        )

    @model_validator(mode="after")
    def _width_fits(self) -> Self:
        if self.max_branch_width > self.max_budget:
            raise ValueError(
                f"max_branch_width ({self.max_branch_width}) is above max_budget ({self.max_budget}): a tree of "
                "max_budget nodes cannot hold that many children"
            )
        return self

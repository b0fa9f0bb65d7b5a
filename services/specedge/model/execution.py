"""What computes a model, as logs, metrics and `/version` say it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Execution:
    """The choice that was made for one model.

    Attributes:
        engine: native, lean or transformers.
        attention: the attention backend; native has its own.
        dtype: of activations, keys and values.
        device: cpu or cuda:N.
        graphs: up to how many rows a step is replayed from a CUDA graph, or none.
        quantization: of the weights, or none.
    """

    engine: str
    attention: str
    dtype: str
    device: str
    graphs: str = "none"
    quantization: str = "none"

    def __str__(self) -> str:
        text = f"engine {self.engine}, attention {self.attention}, {self.dtype} on {self.device}, graphs {self.graphs}"
        return text if self.quantization == "none" else f"{text}, quantization {self.quantization}"


def graphs_of(row_counts: Sequence[int]) -> str:
    """`Execution.graphs` for the row counts that are recorded."""
    return f"to {max(row_counts)} rows" if row_counts else "none"

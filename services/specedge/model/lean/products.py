"""Products with weight matrices, which are plain tensors or quantised ones."""

import torch
from torch.nn.functional import linear


def product(
    x: torch.Tensor,  # [num_rows, inputs]
    weight: torch.Tensor,  # [outputs, inputs]
    bias: torch.Tensor | None = None,  # [outputs]
) -> torch.Tensor:
    """x @ weight.T + bias."""
    if type(weight) is not torch.Tensor:
        return linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t())
    return torch.addmm(bias, x, weight.t())


def add_product(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Add x @ weight.T to the residual stream, in place."""
    if type(weight) is torch.Tensor:
        residual.addmm_(x, weight.t())
    else:
        residual.add_(linear(x, weight))

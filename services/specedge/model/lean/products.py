"""Products with weight matrices, which are plain tensors or quantised ones."""

import torch
from torch.nn.functional import linear


def product(
    x: torch.Tensor,  # [num_rows, inputs]
    weight: torch.Tensor,  # [outputs, inputs]
    bias: torch.Tensor | None = None,  # [outputs]
    out: torch.Tensor | None = None,  # [num_rows, outputs]
) -> torch.Tensor:
    """x @ weight.T + bias, put into `out` where one is given."""
    if type(weight) is not torch.Tensor:
        result = linear(x, weight, bias)
        return result if out is None else out.copy_(result)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def add_product(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Add x @ weight.T to the residual stream, in place."""
    if type(weight) is torch.Tensor:
        residual.addmm_(x, weight.t())
    else:
        residual.add_(linear(x, weight))

"""Rows that a 16-bit forward on the CPU is padded with, so that a row is the same bits in every batch.

Matrix products take other kernels for one row, for a few, and for what a full register block leaves over, and each adds
in its own order. Rows in multiples of a block all take one kernel, which computes every row alike.
"""

import torch

ROW_TILE = 8


def is_rounded(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model's numbers have 16 bits and live on the CPU, where rows are made independent of their batch."""
    return dtype.itemsize == 2 and device.type == "cpu"


def pad_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with zeros below, up to a multiple of ROW_TILE rows."""
    missing = -tensor.shape[0] % ROW_TILE
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:])))) if missing else tensor

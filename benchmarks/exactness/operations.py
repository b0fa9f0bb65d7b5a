"""`python -m benchmarks.exactness.operations`: which operations on the CPU depend on what else is computed.

Random numbers in the shapes of the embedded target and of larger models go through each operation once row by row and
once together; the table says which share of the rows has the same bits.
"""

from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from specedge.model.row_tile import pad_rows

ROW_COUNTS = (2, 3, 4, 8, 16, 24, 32, 64)
PRODUCTS = ((192, 320), (512, 192), (1024, 4096), (4096, 1024))  # inputs, outputs
CONTEXTS = (40, 128, 300, 700)
NUM_ROWS = 64
NUM_QUERIES = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Rows = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    torch.manual_seed(0)
    table = Table(box=None, header_style="bold")
    table.add_column("operation")
    for dtype in DTYPES:
        table.add_column(str(dtype).removeprefix("torch."), justify="right")
    columns = [shares_of(dtype) for dtype in DTYPES]
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.0%}" for column in columns))
    Console().print(table)


@torch.inference_mode()
def shares_of(dtype: torch.dtype) -> dict[str, float]:
    """By operation, the share of rows with the same bits, the worst over all shapes and row counts."""
    shares = {}
    for num_inputs, num_outputs in PRODUCTS:
        multiply = _product((torch.randn(num_outputs, num_inputs) * num_inputs**-0.5).to(dtype))
        rows = torch.randn(NUM_ROWS, num_inputs).to(dtype)
        name = f"product {num_inputs} x {num_outputs}"
        shares[name] = _worst(multiply, rows)
        shares[f"{name}, rows padded"] = _worst(_padded(multiply), rows)
    rows = torch.randn(NUM_ROWS, 192).to(dtype)
    shares["RMS norm"] = _worst(lambda some: rms_norm(some, (192,), rows[0]), rows)
    shares["attention, several queries"] = min(_attention(dtype, context, dtype) for context in CONTEXTS)
    shares["attention, slots in another order"] = min(_permuted(dtype, context, dtype) for context in CONTEXTS)
    wide = torch.float64
    shares["float64 attention, several queries"] = min(_attention(dtype, context, wide) for context in CONTEXTS)
    shares["float64 attention, slots in another order"] = min(_permuted(dtype, context, wide) for context in CONTEXTS)
    return shares


def _product(weight: torch.Tensor) -> Rows:
    return lambda rows: linear(rows, weight)


def _padded(operation: Rows) -> Rows:
    return lambda rows: operation(pad_rows(rows))[: len(rows)]


def _worst(operation: Rows, rows: torch.Tensor) -> float:
    """Of all row counts, against row by row."""
    alone = torch.cat([operation(rows[i : i + 1]) for i in range(len(rows))])
    shares = []
    for num in ROW_COUNTS:
        parts = [operation(rows[i : i + num]) for i in range(0, len(rows), num)]
        shares.append(_share(torch.cat(parts), alone))
    return min(shares)


def _share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found == expected).flatten(1).all(1).float().mean())


def _attend(
    heads: Sequence[torch.Tensor], inside: torch.dtype, first: int, end: int, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Queries first..end of a causal text, [end - first, heads, head_dim]; the context's slots in this order."""
    query, key, value = (part.to(inside) for part in heads)
    slots = torch.arange(end) if order is None else order
    mask = slots[None, :] <= torch.arange(first, end)[:, None]
    out = scaled_dot_product_attention(
        query[:, first:end],
        key[:, slots],
        value[:, slots],
        attn_mask=None if end - first == 1 else mask,
        enable_gqa=True,
    )
    return out.transpose(0, 1).to(heads[0].dtype)


def _heads(dtype: torch.dtype, context: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the embedded target's shape: three heads that share keys and values."""
    query, key, value = (torch.randn(num, context, 64).to(dtype) for num in (3, 1, 1))
    return query, key, value


def _attention(dtype: torch.dtype, context: int, inside: torch.dtype) -> float:
    heads, start = _heads(dtype, context), context - NUM_QUERIES
    alone = torch.cat([_attend(heads, inside, row, row + 1) for row in range(start, context)])
    shares = []
    for num in (2, 8, NUM_QUERIES):
        parts = [_attend(heads, inside, row, row + num) for row in range(start, context, num)]
        shares.append(_share(torch.cat(parts), alone))
    return min(shares)


def _permuted(dtype: torch.dtype, context: int, inside: torch.dtype) -> float:
    shares = []
    for _ in range(16):
        heads = _heads(dtype, context)
        order = torch.cat((torch.arange(context - NUM_QUERIES), context - NUM_QUERIES + torch.randperm(NUM_QUERIES)))
        plain = _attend(heads, inside, context - 1, context)
        shares.append(_share(_attend(heads, inside, context - 1, context, order), plain))
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()

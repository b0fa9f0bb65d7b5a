"""Tables of one buffer: what was filled is read back, in place, at any size that fits."""

import numpy as np
import torch

from specedge.model.attention.placement import Placement, Table, place

CPU = torch.device("cpu")


def test_smaller_arrays_fill_the_beginning_of_each_dimension() -> None:
    tables = Placement([Table("wide", (3, 2), is_wide=True), Table("rows", (5,))], CPU)
    tables.fill({"wide": np.array([[1, 2], [3, 4], [5, 2**40]]), "rows": np.arange(5, dtype=np.int32)})
    assert tables["wide"].tolist() == [[1, 2], [3, 4], [5, 2**40]]
    address = tables["wide"].data_ptr()
    tables.fill({"wide": np.array([[7], [8]]), "rows": np.array([9], dtype=np.int32)})
    assert tables["wide"][:2, :1].tolist() == [[7], [8]]
    assert tables["rows"].tolist() == [9, 1, 2, 3, 4]
    assert tables["wide"].data_ptr() == address


def test_tables_are_aligned_alike_at_every_size() -> None:
    for size in (1, 3, 16, 17, 1000):
        shapes = [Table("first", (size,)), Table("empty", (0, 4)), Table("second", (size, 3), is_wide=True)]
        tables = Placement(shapes, CPU)
        offsets = [tables[table.name].data_ptr() - tables["first"].data_ptr() for table in shapes]
        assert [offset % 64 for offset in offsets] == [0, 0, 0]
        assert tables["second"].shape == (size, 3)


def test_arrays_placed_together_keep_their_shapes_and_kinds() -> None:
    arrays = {
        "ids": np.array([1, 2, 3]),
        "rows": np.array([[4, 5]], dtype=np.int32),
        "none": np.zeros(0, dtype=np.int64),
    }
    for device in (CPU, torch.device("meta")):
        placed = place(arrays, device)
        assert [(name, tuple(tensor.shape)) for name, tensor in placed.items()] == [
            ("ids", (3,)),
            ("rows", (1, 2)),
            ("none", (0,)),
        ]
        assert [tensor.dtype for tensor in placed.values()] == [torch.int64, torch.int32, torch.int64]
        assert {tensor.device for tensor in placed.values()} == {device}
    assert placed.keys() == arrays.keys()
    assert place(arrays, CPU)["ids"].tolist() == [1, 2, 3]

"""Tables of one buffer: what was filled is read back, in place, at any size that fits."""

import numpy as np
import torch

from specedge.model.attention.placement import Placement, Table

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

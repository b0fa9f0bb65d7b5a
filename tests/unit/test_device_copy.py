"""Many arrays in one buffer, and out of it again."""

import numpy as np
import torch

from specedge.device_copy import Upload, fetch, packed, unpacked

ARRAYS = [
    np.array([3, -1], dtype=np.int64),
    np.arange(5, dtype=np.float32),
    np.empty(0, dtype=np.int64),
    np.array([[True, False, True]]),
    np.arange(6, dtype=np.float64).reshape(2, 3)[:, ::2],
]


def test_arrays_come_out_of_a_buffer_as_they_went_in() -> None:
    arrays = [np.ascontiguousarray(array) for array in ARRAYS]
    tensors = unpacked(packed(arrays, is_pinned=False), arrays)
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def test_an_upload_keeps_the_order_on_every_kind_of_device() -> None:
    upload = Upload()
    assert [upload.add(array) for array in ARRAYS] == list(range(len(ARRAYS)))
    for array, tensor in zip(ARRAYS, upload.send(torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
    elsewhere = upload.send(torch.device("meta"))
    assert [tuple(tensor.shape) for tensor in elsewhere] == [array.shape for array in ARRAYS]
    assert {tensor.device.type for tensor in elsewhere} == {"meta"}
    assert len({tensor.untyped_storage()._cdata for tensor in elsewhere}) == 1, "one copy for all"


def test_results_are_fetched_as_they_are() -> None:
    tensor = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    np.testing.assert_array_equal(fetch(tensor), tensor.numpy(), strict=True)


def test_an_empty_upload_sends_nothing() -> None:
    assert Upload().send(torch.device("cpu")) == []
    assert Upload().send(torch.device("meta")) == []

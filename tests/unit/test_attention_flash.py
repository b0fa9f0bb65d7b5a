"""The flash backend around a function with the contract of torch's kernel, and the contract itself."""

from inspect import Parameter, signature
from typing import Any

import numpy as np
import pytest
import torch
from ragged_attention import varlen_attn
from torch.nn.attention import varlen as torch_varlen

from specedge.model.attention import flash_function as module
from specedge.model.attention.choose import checked_backend, choose_backend
from specedge.model.attention.flash_backend import FlashBackend
from specedge.model.attention.flash_function import FlashFunction, flash_function, through_package, through_torch
from specedge.model.attention.flash_plan import divide_for_flash
from specedge.model.attention.interface import AttentionUnavailable
from specedge.model.attention.self_test import Chain, Tree, difference, random_batch, random_inputs
from specedge.model.attention_plan import plan_of

CPU = torch.device("cpu")
SHAPES = ((6, 2, 16), (4, 4, 8), (8, 1, 32))  # heads, KV heads, head dimension
BATCHES: dict[str, tuple[Chain | Tree, ...]] = {
    "everything": (Chain(0, 1), Tree(5, 12), Chain(20, 9), Tree(13, 65, 4), Chain(31, 1), Chain(0, 30), Tree(0, 7)),
    "decode": (Chain(40, 1), Chain(3, 1)),
    "one tree": (Tree(50, 6, 70),),
    "trees without a prefix": (Tree(0, 3), Tree(0, 9)),
    "prompts": (Chain(0, 40), Chain(33, 20)),
}
"""Arguments of flash_attn_varlen_func, as its version 2.8 has them."""
PACKAGE_PARAMETERS = {"softmax_scale", "causal", "window_size", "return_attn_probs"}


def flash_attn_varlen_func(q: Any, k: Any, v: Any, *starts_and_sizes: Any, **arguments: Any) -> Any:
    assert set(arguments) == PACKAGE_PARAMETERS and arguments["return_attn_probs"]
    left, right = arguments["window_size"]
    assert not arguments["causal"] or right == 0
    output, lse = varlen_attn(
        q,
        k,
        v,
        *starts_and_sizes,
        return_aux=torch_varlen.AuxRequest(lse=True),
        scale=arguments["softmax_scale"],
        window_size=(left, right),
        enable_gqa=True,
    )
    return output, lse, None


FUNCTIONS = {"torch": through_torch(varlen_attn), "flash-attn": through_package(flash_attn_varlen_func)}


def backend(function: FlashFunction, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> FlashBackend:
    num_heads, num_kv_heads, head_dim = shape
    return FlashBackend(
        CPU, dtype, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, function=function
    )


def inputs(num_rows: int, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = dict(zip(("num_heads", "num_kv_heads", "head_dim"), shape, strict=True))
    return random_inputs(1, num_rows=num_rows, num_slots=512, dtype=torch.float32, device=CPU, **sizes)


@pytest.mark.parametrize("window", [None, 1, 7, 33, 1000])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_equals_the_reference(function: str, name: str, window: int | None) -> None:
    plan = plan_of(random_batch(np.random.default_rng(3), BATCHES[name], num_slots=512))
    for shape in SHAPES:
        q, keys, values = inputs(plan.num_rows, shape)
        assert difference(backend(FUNCTIONS[function], shape), plan, q, keys, values, sliding_window=window) < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_passes_the_self_test_that_chooses_it(dtype: torch.dtype) -> None:
    flash = backend(FUNCTIONS["torch"], SHAPES[0], dtype)
    chosen = checked_backend(flash, CPU, dtype, num_heads=6, num_kv_heads=2, head_dim=16)
    assert chosen is flash


@pytest.mark.parametrize("mistake", ["alignment", "lse in the other order", "window one too wide"])
def test_the_self_test_notices_another_contract(mistake: str) -> None:
    def wrong(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, *sizes: Any, **arguments: Any) -> Any:
        left, right = arguments["window_size"]
        if mistake == "alignment" and right == 0:
            arguments["window_size"] = (left, 1)
        if mistake == "window one too wide" and left >= 0:
            arguments["window_size"] = (left + 1, right)
        output, lse = varlen_attn(q, k, v, starts_q, starts_k, *sizes, **arguments)  # type: ignore[misc]
        return output, lse.t().contiguous() if mistake == "lse in the other order" else lse

    flash = backend(through_torch(wrong), SHAPES[0])
    assert checked_backend(flash, CPU, torch.float32, num_heads=6, num_kv_heads=2, head_dim=16).name == "sdpa"


def test_one_state_serves_layers_with_and_without_windows() -> None:
    plan = plan_of(random_batch(np.random.default_rng(4), BATCHES["everything"], num_slots=512))
    q, keys, values = inputs(plan.num_rows, SHAPES[0])
    flash = backend(FUNCTIONS["torch"], SHAPES[0])
    state = flash.prepare(plan, CPU)
    shared = [flash.attend(state, keys, values, q, scale=0.3, sliding_window=each) for each in (None, 9, None)]
    for window, result in zip((None, 9, None), shared, strict=True):
        own = flash.attend(flash.prepare(plan, CPU), keys, values, q, scale=0.3, sliding_window=window)
        assert torch.equal(result, own) and result.is_contiguous()
    assert not torch.equal(shared[0], shared[1])


def test_no_tree_goes_to_the_reference_where_its_window_hides_nothing() -> None:
    plan = plan_of(random_batch(np.random.default_rng(4), BATCHES["everything"], num_slots=512))
    q, keys, values = inputs(plan.num_rows, SHAPES[0])
    flash = backend(FUNCTIONS["torch"], SHAPES[0])
    state = flash.prepare(plan, CPU)
    flash.attend(state, keys, values, q, scale=0.3, sliding_window=int(plan.positions.max()) + 1)
    assert list(state.placed) == [False] and not state.placed[False].other


def test_trees_of_unlike_sizes_are_not_padded_to_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (Tree(9, 3), Tree(70, 30, 40), Chain(5, 1), Tree(0, 2), Tree(4, 4, 9), Tree(11, 3))
    plan = plan_of(random_batch(np.random.default_rng(4), cases, num_slots=512))
    q, keys, values = inputs(plan.num_rows, SHAPES[0])
    for limit, expected in ((1 << 18, [(5, 30, 70)]), (250, [(1, 30, 70), (4, 4, 13)]), (1, [(1, 30, 70), (1, 4, 13)])):
        monkeypatch.setattr("specedge.model.attention.flash_plan.MAX_PADDED_SCORES", limit)
        tails = divide_for_flash(plan, is_windowed=False).tails
        assert [(tail.num_trees, tail.max_rows, tail.max_tail) for tail in tails][:2] == expected
        assert sum(tail.num_trees for tail in tails) == 5
        assert difference(backend(FUNCTIONS["torch"], SHAPES[0]), plan, q, keys, values, sliding_window=None) < 2e-5


def test_a_one_row_chain_goes_with_the_prefixes_unless_there_is_a_window() -> None:
    plan = plan_of(random_batch(np.random.default_rng(4), (Chain(9, 1), Tree(4, 3), Chain(2, 2)), num_slots=512))
    division = divide_for_flash(plan, is_windowed=False)
    assert division.causal is not None and division.causal.rows.tolist() == [4, 5]
    assert division.prefixes is not None and division.prefixes.rows.tolist() == [1, 2, 3, 0]
    assert division.prefixes.key_starts.tolist() == [0, 4, 14]
    windowed = divide_for_flash(plan, is_windowed=True)
    assert windowed.causal is not None and windowed.causal.rows.tolist() == [0, 4, 5]
    assert windowed.prefixes is None and not windowed.tails


def test_the_written_out_function_and_ours_know_all_of_torchs_parameters() -> None:
    """If torch changes them, the adapter and the tests' stand-in must follow."""
    theirs = signature(torch_varlen.varlen_attn).parameters
    assert list(theirs) == list(signature(varlen_attn).parameters)
    assert all(theirs[name].kind is Parameter.KEYWORD_ONLY for name in module.TORCH_PARAMETERS)
    assert "lse" in torch_varlen.AuxRequest._fields


def test_lse_is_heads_first_in_torchs_own_shape_function() -> None:
    """Its documentation says otherwise; this is what the kernel's shapes are inferred from."""
    q, k = (torch.empty(shape, device="meta", dtype=torch.bfloat16) for shape in ((10, 4, 16), (20, 4, 16)))
    starts = torch.empty(3, device="meta", dtype=torch.int32)
    _, lse = torch_varlen.varlen_attn(q, k, k, starts, starts, 8, 12, return_aux=torch_varlen.AuxRequest(lse=True))
    assert lse.shape == (4, 10) and lse.dtype == torch.float32


def test_torch_comes_first_and_flash_attn_stands_in_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int) -> None: ...

    found = {("torch.nn.attention.varlen", "varlen_attn"): varlen_attn}
    real = module._imported
    monkeypatch.setattr(module, "_imported", lambda *name: real(*name) if name[1] == "AuxRequest" else found.get(name))
    assert "through_torch" in flash_function().__qualname__  # type: ignore[attr-defined]
    found["torch.nn.attention.varlen", "varlen_attn"] = old  # type: ignore[assignment]
    found["flash_attn", "flash_attn_varlen_func"] = flash_attn_varlen_func  # type: ignore[assignment]
    assert "through_package" in flash_function().__qualname__  # type: ignore[attr-defined]
    del found["flash_attn", "flash_attn_varlen_func"]
    with pytest.raises(AttentionUnavailable, match=r"no varlen_attn with return_aux.*flash-attn is not installed"):
        flash_function()


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "message"),
    [
        ((7, 5), torch.bfloat16, 64, "compute capability 8.0 or more; cuda:0 has 7.5"),
        ((9, 0), torch.float32, 64, "takes bfloat16 and float16, not torch.float32"),
        ((9, 0), torch.bfloat16, 36, "multiples of 8, up to 256, not 36"),
        ((9, 0), torch.bfloat16, 264, "multiples of 8, up to 256, not 264"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(AttentionUnavailable, match=message):
        choose_backend(torch.device("cuda:0"), dtype, head_dim, "flash", num_heads=4, num_kv_heads=2)

"""Shapes: the lean forward computes what transformers computes, and a tiny model is measured end to end."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from specedge_bench import shapes
from specedge_bench.curves import load_curve
from specedge_bench.model_shape import BUILT_IN, QWEN3_14B, ModelShape, ShapeError
from specedge_bench.shape_models import LayerWeights, LeanDecoder, StaticBatch
from specedge_bench.shape_timing import Stopwatch, binary_tree, graph_steps, kernel_kind

TINY = ModelShape("tiny", 32, 64, 2, 4, 2, 8, 97, is_tied=True)


def lean_copy(model: Qwen3ForCausalLM) -> LeanDecoder:
    layers = [
        LayerWeights(
            qkv=torch.cat(
                (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight)
            ),
            output=layer.self_attn.o_proj.weight,
            gate_up=torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)),
            down=layer.mlp.down_proj.weight,
            attention_norm=layer.input_layernorm.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            query_norm=layer.self_attn.q_norm.weight,
            key_norm=layer.self_attn.k_norm.weight,
        )
        for layer in model.model.layers
    ]
    embedding = model.model.embed_tokens.weight
    return LeanDecoder(TINY, embedding, layers, model.model.norm.weight, embedding)


@pytest.mark.parametrize("num_nodes", [1, 4])
def test_lean_forward_equals_transformers(num_nodes: int) -> None:
    """Two sessions of equal prefix; the rows are a chain, which is a tree that plain causal decoding can check."""
    torch.manual_seed(0)
    config = Qwen3Config(**TINY.to_config(), rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # default norms are ones and default weights too small to tell
        parameter.normal_(mean=0.1, std=0.3)
    prefix, tokens = 5, torch.randint(97, (2, 5 + num_nodes))
    cached = model(tokens[:, :prefix], use_cache=True).past_key_values
    kv = torch.zeros(2, 2, 2, prefix + num_nodes, 2, 8)
    for index in range(2):
        kv[index, 0, :, :prefix] = cached.layers[index].keys.transpose(1, 2)
        kv[index, 1, :, :prefix] = cached.layers[index].values.transpose(1, 2)
    sees = torch.ones(num_nodes, num_nodes, dtype=torch.bool).tril()
    batch = StaticBatch.build(TINY, 2, list(range(num_nodes)), sees, kv)
    batch.token_ids.copy_(tokens[:, prefix:].reshape(-1))

    logits = lean_copy(model).forward(batch)

    expected = model(tokens).logits[:, prefix:].reshape(2 * num_nodes, -1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_tree_mask_hides_siblings() -> None:
    depths, sees = binary_tree(5)  # 0 has 1 and 2, 1 has 3 and 4
    assert depths == [0, 1, 1, 2, 2]
    assert [list(map(int, line)) for line in sees] == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_layer_of_kv_that_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    one_layer_of_8_tokens = 2 * 8 * 2 * 8 * 4
    monkeypatch.setattr("specedge_bench.shape_timing.CPU_KV_BYTES", one_layer_of_8_tokens)
    with graph_steps(TINY, {}, torch.device("cpu"), torch.float32, [(1, 1, 63)]) as steps:
        with steps.prepare(1, 1, 7) as step:
            assert Stopwatch(3, 1.0).median_s(step, torch.device("cpu")) > 0
        with pytest.raises(torch.OutOfMemoryError, match="do not fit"), steps.prepare(1, 1, 8):
            pass


def test_the_built_in_sizes_are_the_published_ones() -> None:
    billions = {name: round(shape.num_parameters / 1e9, 2) for name, shape in BUILT_IN.items()}
    assert billions == {"Qwen3-0.6B": 0.6, "Qwen3-1.7B": 1.72, "Qwen3-14B": 14.77, "Qwen3-32B": 32.76}
    assert QWEN3_14B.kv_bytes_per_token() == 163840  # 40 layers x (keys, values) x 8 heads x 128 x 2 bytes
    assert ModelShape.from_config("Qwen3-14B", QWEN3_14B.to_config()) == QWEN3_14B


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x64_64x9_1x2_h_bz_TNT", "gemm"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<cutlass::bfloat16_t>", "attention"),
        ("triton_red_fused_add_mean_mul_rsqrt_0", "rest"),
        ("aten::addmm", "gemm"),
    ],
)
def test_kernel_kinds(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


def test_measures_and_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_config()), encoding="utf-8")
    out = tmp_path / "tiny-cpu.json"
    command = f"--config {tmp_path} --rows 1,8 --prefix 4,16 --nodes 4 --device cpu --steps 3 --kernels --out {out}"

    assert shapes.main(command.split()) == 0

    curve = load_curve(out)
    assert (curve.name, curve.method, curve.dtype) == ("tiny-cpu", "measured eager (ModelRunner)", "float32")
    assert (curve.rows, curve.prefixes) == ((1, 8), (4, 16))
    assert curve.tree is not None
    assert curve.tree.rows == (4, 8)
    assert curve.num_nodes == 4
    shares = json.loads(out.read_text(encoding="utf-8"))["kernels"]["1x1 rows, prefix 16"]
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert shares["gemm"] > 0
    assert "2 x 4 nodes / 2 plain rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, "num_attention_heads is None"),
        (TINY.to_config() | {"hidden_size": -1}, "hidden_size is -1"),
        (TINY.to_config() | {"num_experts": 8}, "only dense decoders"),
        ([1], "holds a list"),
    ],
)
def test_refuses_a_bad_config(tmp_path: Path, config: object, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ShapeError, match=message):
        shapes.read_model(str(path))


def test_refusals_name_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(ShapeError, match=r"Qwen4-1T: no such file; built in are Qwen3-0\.6B"):
        shapes.main(["--config", "Qwen4-1T", "--device", "cpu", "--out", str(out)])
    with pytest.raises(ShapeError, match="needs a CUDA device"):
        shapes.main(["--config", "Qwen3-14B", "--device", "cpu", "--graph", "on", "--out", str(out)])
    assert not out.exists()

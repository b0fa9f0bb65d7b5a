import pytest

from specedge_bench.curves import load_curve, straight_curve
from specedge_bench.simulation.flags import simulate_parser
from specedge_bench.simulation.kv_memory import num_kv_blocks
from specedge_bench.simulation.points import PointMaker
from specedge_bench.simulation.scenario import ScenarioError


def test_the_target_alone_leaves_room_for_a_known_number_of_tokens() -> None:
    # Qwen3-14B: 40 layers, 8 KV heads of 128, keys and values of 2 bytes: 163,840 bytes a token; 29.5 GB of weights.
    num_blocks = num_kv_blocks(load_curve("A100-40/Qwen3-14B"), None, 16)
    parameters = 40 * (5120 * (2 * 40 * 128 + 2 * 8 * 128) + 3 * 5120 * 17408) + 2 * 5120 * 151936
    assert num_blocks == int(0.9 * 40e9 - 2 * parameters) // (163_840 * 16)


def test_a_draft_model_on_the_same_device_takes_its_weights_and_its_own_keys_and_values() -> None:
    target, draft = load_curve("A100-40/Qwen3-14B"), load_curve("A100-40/Qwen3-1.7B")
    alone, shared = num_kv_blocks(target, None, 16), num_kv_blocks(target, draft, 16)
    assert alone is not None
    assert shared is not None
    assert 3 < alone / shared < 5


def test_weights_that_do_not_fit_are_refused_by_size() -> None:
    with pytest.raises(ScenarioError, match=r"65\.\d GB; A100-40 has 40 GB"):
        num_kv_blocks(load_curve("A100-40/Qwen3-32B"), None, 16)


def test_a_constant_curve_says_nothing_about_memory() -> None:
    assert num_kv_blocks(straight_curve("30ms"), None, 16) is None


def test_a_simulation_takes_what_the_device_has_room_for_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    def num_blocks(*flags: str) -> list[int | None]:
        options = simulate_parser().parse_args([*flags])
        return [point.scenarios[0].num_kv_blocks for point in PointMaker(options).points()]

    alone, beside, edge = num_blocks()  # autoregressive, server-only, specedge
    assert alone == edge == num_kv_blocks(load_curve("A100-40/Qwen3-14B"), None, 16)
    assert beside == num_kv_blocks(load_curve("A100-40/Qwen3-14B"), load_curve("A100-40/Qwen3-1.7B"), 16)
    assert num_blocks("--num-kv-blocks", "unlimited") == [None] * 3
    assert num_blocks("--num-kv-blocks", "77") == [77] * 3
    with pytest.raises(SystemExit):
        num_blocks("--num-kv-blocks", "many")
    assert "many" in capsys.readouterr().err

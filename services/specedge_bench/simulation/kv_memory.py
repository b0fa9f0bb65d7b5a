"""How many KV blocks a verifier's device has room for beside the weights: it decides how many sessions run at once."""

from specedge_bench.curves import StepCurve
from specedge_bench.devices import UnknownDevice, find_device
from specedge_bench.model_shape import dtype_bytes, find_shape
from specedge_bench.simulation.scenario import ScenarioError

MEMORY_REACHED = 0.9  # share of a device's memory for weights and KV; the rest is activations, graphs and the runtime


def num_kv_blocks(target: StepCurve, draft: StepCurve | None, block_size: int) -> int | None:
    """Blocks of keys and values that fit beside the weights.

    A draft model on the same device takes room for its weights and, for every token, for its own keys and values.

    Args:
        target: its curve names device, model and dtype.
        draft: likewise, of a draft model on that device; None where drafts come from elsewhere.
        block_size: tokens per block.

    Returns:
        None where a device or model is not one whose size is known.

    Raises:
        ScenarioError: the weights leave no room for a block.
    """
    weight_bytes = token_bytes = 0
    for curve in (target, draft):
        if curve is None:
            continue
        shape = find_shape(curve.model)
        if shape is None:
            return None
        weight_bytes += shape.num_parameters * dtype_bytes(curve.dtype)
        token_bytes += shape.kv_bytes_per_token(curve.dtype)
    try:
        device = find_device(target.device)
    except UnknownDevice:
        return None
    num_blocks = int(MEMORY_REACHED * device.memory_bytes - weight_bytes) // (token_bytes * block_size)
    if num_blocks < 1:
        raise ScenarioError(
            f"the weights take {weight_bytes / 1e9:.1f} GB; {device.name} has {device.memory_bytes / 1e9:.0f} GB, of "
            f"which {MEMORY_REACHED:.0%} can be used"
        )
    return num_blocks

"""The target and the size of its KV cache, as every rank of a verifier loads them."""

from collections.abc import Mapping

import torch

from specedge.drafting.loading import MakeRunner
from specedge.model.embedded import resolve_model
from specedge.model.engines import LoadedModel, graph_bytes_of, kv_bytes_of, load_for
from specedge.model.ranks import RankPlace, Ranks, rank_device, refuse_several
from specedge.model.runner import ModelRunner
from specedge_verifier.kv_sizing import DraftKV, choose_num_blocks, context_length
from specedge_verifier.settings import VerifierSettings


def meet_ranks(settings: VerifierSettings, environment: Mapping[str, str]) -> Ranks | None:
    """Join the ranks of this verifier; None where this process is all of it.

    Args:
        environment: the process's, as torchrun has set it.

    Raises:
        SettingsError: the environment and the settings do not agree.
        ModelLoadError: the ranks did not meet, or have too few devices.
    """
    if settings.tensor_parallel_size == 1:
        refuse_several(environment)
        return None
    place = RankPlace.of(environment, settings.tensor_parallel_size)
    return Ranks(place, rank_device(place, settings.device))


def load_target(settings: VerifierSettings, ranks: Ranks | None) -> LoadedModel:
    """Load the target, or this rank's part of it.

    Raises:
        ModelLoadError: it cannot be loaded or divided, or does not fit.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    return load_for(
        settings.engine,
        resolve_model(settings.target_model, "target"),
        settings.device if ranks is None else str(rank_device(ranks.place, settings.device)),
        settings.dtype,
        attention=settings.attention,
        graph_bytes=settings.graph_bytes,
        ranks=ranks,
    )


def size_pool(
    settings: VerifierSettings, model: LoadedModel, ranks: Ranks | None, draft_model: "LoadedModel | None" = None
) -> int:
    """KV blocks of the target; with several ranks, as many as each of them has room for.

    Raises:
        ModelLoadError: as for `choose_num_blocks`.
    """
    num_sharing = 1 if ranks is None or model.device.type == "cuda" else ranks.place.num_local
    num_blocks = choose_num_blocks(
        bytes_per_token=kv_bytes_of(model),
        device=model.device,
        block_size=settings.block_size,
        max_len=context_length(model.config, settings.max_len),
        max_batch_size=settings.max_batch_size,
        max_tree_nodes=settings.max_tree_nodes,
        num_kv_blocks=settings.num_kv_blocks,
        memory_fraction=settings.kv_memory_fraction / num_sharing,
        graph_bytes=graph_bytes_of(model) + (0 if draft_model is None else graph_bytes_of(draft_model)),
        draft=None if draft_model is None else DraftKV(kv_bytes_of(draft_model), settings.num_draft_slots),
    )
    return num_blocks if ranks is None else ranks.least(num_blocks)


def load_part(settings: VerifierSettings, ranks: Ranks, make_runner: MakeRunner) -> ModelRunner:
    """What a rank other than 0 runs.

    Raises:
        ModelLoadError: as for `load_target` and `size_pool`.
    """
    model = load_target(settings, ranks)
    return make_runner(model, size_pool(settings, model, ranks) * settings.block_size)

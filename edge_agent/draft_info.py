"""A draft model that may answer alone, described as verifiers describe their target."""

from edge_agent.settings import EdgeSettings
from specedge import __version__
from specedge.model.embedded import resolve_model
from specedge.model.loader import load_generation_defaults
from specedge.tokenizer import Tokenizer, tokenizer_fingerprint
from specedge.wire.messages import TOKEN_MASKS, ServerInfo


def draft_info(settings: EdgeSettings, tokenizer: Tokenizer, num_slots: int, max_positions: int) -> ServerInfo:
    """What the draft model serves by itself, in the form in which verifiers tell it."""
    assert settings.draft_model is not None, "the settings see to it"
    defaults = load_generation_defaults(resolve_model(settings.draft_model, "draft"), tokenizer)
    return ServerInfo(
        target_model=settings.draft_model,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        max_len=min(num_slots, max_positions),
        max_live_nodes=0,
        eos_ids=defaults.eos_ids,
        max_batch_size=settings.max_concurrent_requests,
        server_version=__version__,
        default_sampling=defaults.sampling,
        capabilities=(TOKEN_MASKS,),
    )

"""How many bytes simulated messages have on the wire: the product's codecs encode them.

The simulator's tokens are small numbers; a vocabulary of 100,000 and more takes three bytes for most of its tokens, so
that is what is encoded.
"""

from dataclasses import replace

from specedge.wire.channel import FRAMING_BYTES
from specedge.wire.codec import encode_open, encode_response
from specedge.wire.draft_codec import DraftEncoder
from specedge.wire.messages import DraftNodes, OpenSession, Verdict

_TOKEN = 100_000


def open_bytes(message: OpenSession) -> int:
    """Of a session's first message."""
    sized = replace(message, prompt_ids=(_TOKEN,) * len(message.prompt_ids))
    return int(encode_open(sized).ByteSize()) + FRAMING_BYTES


def verdict_bytes(verdict: Verdict) -> int:
    """Of one verdict."""
    sized = verdict._replace(token_ids=(_TOKEN,) * len(verdict.token_ids))
    return int(encode_response(sized).ByteSize()) + FRAMING_BYTES


def draft_bytes(encoder: DraftEncoder, nodes: DraftNodes) -> int:
    """Of draft nodes, in one message or more.

    Args:
        encoder: the stream's; counts its nodes.
    """
    sized = DraftNodes([_TOKEN] * len(nodes.token_ids), nodes.parents, nodes.scores)
    return sum(int(request.ByteSize()) + FRAMING_BYTES for request in encoder.encode(sized))

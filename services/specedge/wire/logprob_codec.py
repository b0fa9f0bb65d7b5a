"""Log-probabilities to protobuf and back: one float for each, and the ids of the best tokens."""

from collections.abc import Sequence
from itertools import chain

from specedge.errors import ProtocolError
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.messages import TokenLogprob, check_received_ids


def encode_logprobs(message: pb.TokenLogprobs, logprobs: Sequence[TokenLogprob]) -> None:
    """Fill a message; every token has equally many best ones."""
    message.values.extend(chain.from_iterable([(token.logprob, *token.top_logprobs) for token in logprobs]))
    message.top_ids.extend(chain.from_iterable([token.top_ids for token in logprobs]))


def decode_logprobs(message: pb.TokenLogprobs, vocab_size: int) -> tuple[TokenLogprob, ...]:
    """The log-probabilities in a message; raises ProtocolError when it is malformed."""
    values, top_ids = tuple(message.values[:]), tuple(message.top_ids[:])
    num_tokens = len(values) - len(top_ids)
    num_top, num_left = divmod(len(top_ids), num_tokens) if num_tokens > 0 else (0, len(top_ids))
    if num_left:
        raise ProtocolError(f"logprobs has {len(values)} values and {len(top_ids)} top_ids, which fit no tokens")
    check_received_ids(top_ids, vocab_size, "top_ids", ProtocolError)
    width = 1 + num_top
    return tuple(
        TokenLogprob(
            values[index * width],
            top_ids[index * num_top : (index + 1) * num_top],
            values[index * width + 1 : (index + 1) * width],
        )
        for index in range(num_tokens)
    )

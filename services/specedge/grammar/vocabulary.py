"""What each token of a tokenizer spells, as the grammar compiler must see it."""

from typing import Any, Final

import xgrammar
from transformers import PreTrainedTokenizerBase

from specedge.errors import ModelLoadError

SPECIAL_PREFIX: Final = b"\xff"
"""Never part of UTF-8, so no text of a grammar spells a special token; a structural tag can still name it by id."""


def tokenizer_info(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_ids: tuple[int, ...]
) -> xgrammar.TokenizerInfo:
    """The vocabulary of a fast tokenizer.

    Special tokens are not text: a detokenizer may leave them out, and then a text that was valid with them would not
    be. Ids the tokenizer does not know, up to the width of the logits, are never allowed.

    Args:
        vocab_size: the width of the target's logits.
        eos_ids: the target's end-of-sequence tokens, at least one.

    Raises:
        ModelLoadError: the tokenizer is of a kind that cannot be read.
    """
    try:
        found = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=list(eos_ids))
    except (RuntimeError, ValueError) as error:
        raise ModelLoadError(f"grammars cannot be used with this tokenizer: {error}") from error
    texts = [bytes(text) for text in found.decoded_vocab]
    for token_id, token in added_tokens(tokenizer).items():
        if token_id < vocab_size:
            text = str(token).encode()
            texts[token_id] = SPECIAL_PREFIX + text if token.special else text
    return xgrammar.TokenizerInfo(
        texts,
        xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=list(eos_ids),
        add_prefix_space=found.add_prefix_space,
    )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    """Tokens beside the learnt vocabulary, by id; each knows its text and whether it is special."""
    return dict(getattr(tokenizer, "added_tokens_decoder", {}))

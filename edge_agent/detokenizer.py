"""Token ids to text, one token at a time: what has been released never changes and costs constant time a token.

Byte-level tokenizers (GPT-2's byte alphabet: Llama 3, Qwen, ...) are decoded here byte by byte; what is released is
exactly the tokenizer's own decoding of all tokens. Every other tokenizer is asked to decode a short window that starts
one release earlier, and the difference is what is new: this keeps the spaces that sentencepiece decoders put or strip
at a word's start. Both hold back a character whose bytes are not all there, and both skip special tokens if asked to.
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_REPLACEMENT = "\ufffd"
_MAX_PENDING_TOKENS = 16
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_WORD_START = "\u2581"
"""How a sentencepiece vocabulary spells a space."""


class DecodingTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id; each has `.special`."""

    def convert_ids_to_tokens(self, ids: int) -> Any:
        """The vocabulary entry of an id, None where there is none."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any:
        """Text of the ids together."""


class Detokenizer(Protocol):
    """One answer's text as it grows."""

    def feed(self, token_id: int) -> str:
        """The text that this token completes; often empty, never taken back."""

    def flush(self) -> str:
        """What was held back, with a replacement character for an unfinished one."""


class DetokenizerFactory:
    """Makes a detokenizer for each answer; what they share is derived from the tokenizer once."""

    def __init__(self, tokenizer: DecodingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._spellings = (
            {skips: _TokenBytes(tokenizer, self._special_ids if skips else frozenset()) for skips in (True, False)}
            if _is_byte_level(tokenizer)
            else None
        )

    def create(self, context_ids: Sequence[int] = (), *, skips_special: bool = True) -> Detokenizer:
        """A fresh detokenizer.

        Args:
            context_ids: tokens that the answer directly continues. A sentencepiece decoder strips the space at the
                start of a text, so the first word of a continued text keeps its space only if it is decoded after them.
            skips_special: special tokens have no text.
        """
        if self._spellings is not None:
            return _ByteLevelDetokenizer(self._spellings[skips_special])
        return _WindowDetokenizer(self._tokenizer, self._special_ids if skips_special else frozenset(), context_ids)

    def is_special(self, token_id: int) -> bool:
        """Whether it is a special token."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """What the token alone stands for, a special one its name; nothing for an id without a token."""
        if self._spellings is not None:
            return self._spellings[False][token_id]
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return str(token).replace(_WORD_START, " ").encode()

    def spell(self, token_id: int) -> str:
        """Text of one token by itself, special ones included; a part of a character is a replacement character."""
        return self.token_bytes(token_id).decode(errors="replace")


class _TokenBytes:
    """Bytes of each token of a byte-level vocabulary, looked up when first seen; special and unknown ids have none."""

    def __init__(self, tokenizer: DecodingTokenizer, special_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_alphabet()
        self._known: dict[int, bytes] = dict.fromkeys(special_ids, b"")

    def __getitem__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(self._tokenizer.convert_ids_to_tokens(token_id))
        return known

    def _spell(self, token: str | None) -> bytes:
        if token is None:
            return b""
        try:
            return bytes(self._byte_of[character] for character in token)
        except KeyError:  # an added token, stored as plain text
            return token.encode()


class _ByteLevelDetokenizer:
    def __init__(self, token_bytes: _TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Decodes the last released tokens together with the pending ones.

    A byte-fallback decoder spells a run of bytes with any bad byte among them as all bad, however long ago it began;
    a character already released from such a run stays released.
    """

    def __init__(self, tokenizer: DecodingTokenizer, special_ids: frozenset[int], context_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._window = [id_ for id_ in context_ids[-_MAX_PENDING_TOKENS:] if id_ not in special_ids]
        self._num_released = len(self._window)
        self._released_text = self._decode(self._window)

    def feed(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        num_pending = len(self._window) - self._num_released
        is_complete = len(text) > len(self._released_text) and not text.endswith(_REPLACEMENT)
        if not is_complete and num_pending < _MAX_PENDING_TOKENS:
            return ""
        return self._release(text)

    def flush(self) -> str:
        return self._release(self._decode(self._window))

    def _release(self, text: str) -> str:
        new_text = text[len(self._released_text) :]
        if self._num_released < len(self._window):
            self._window = self._window[self._num_released :]
            self._num_released = len(self._window)
        self._released_text = self._decode(self._window)
        return new_text

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        # Special tokens to be skipped are not among them.
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_byte_level(tokenizer: DecodingTokenizer) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the rest follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

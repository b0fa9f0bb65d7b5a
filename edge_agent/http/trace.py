"""A traced answer's chunks: where each token came from, and what its round looked like, as JSON."""

from collections.abc import Callable
from typing import Any

from edge_agent.draft_trace import RoundTrace, TrieTrace
from edge_agent.http.choice_text import Piece


def trace_json(piece: Piece, spell: Callable[[int], str]) -> dict[str, Any] | None:
    """What a chunk tells under `specedge`; None for a request that asked for no trace.

    Args:
        piece: what the chunk shows. Its first tokens are the accepted draft nodes, at depth 1, 2, ... of their trie;
            the last is the target's own next token, one deeper.
        spell: text of one token.
    """
    if piece.round is None:
        return None
    tokens = [
        {"text": text, "source": _source(piece, piece.round.trie, index), "depth": index + 1}
        for index, text in enumerate(piece.texts)
    ]
    return {"tokens": tokens, "round": _round_json(piece, piece.round, spell)}


def _source(piece: Piece, trie: TrieTrace | None, index: int) -> str:
    """What proposed a token; a verifier that drafts for itself leaves no trie here."""
    if index >= piece.num_accepted:
        return "bonus"
    is_found = trie is not None and index < len(trie.accepted) and trie.accepted[index] in trie.looked_up
    return "lookup" if is_found else "draft"


def _round_json(piece: Piece, trace: RoundTrace, spell: Callable[[int], str]) -> dict[str, Any]:
    seconds = {"gap_ms": trace.gap_s, "draft_ms": trace.draft_s, "network_ms": trace.network_s}
    entry: dict[str, Any] = {
        "num_nodes": piece.num_draft_nodes,
        "num_accepted": piece.num_accepted,
        "queue_ms": round(piece.queue_us / 1000, 3),
        "step_ms": round(piece.step_us / 1000, 3),
        **{name: round(1000 * value, 3) for name, value in seconds.items() if value is not None},
    }
    return entry if trace.trie is None else entry | {"trie": _trie_json(trace.trie, spell)}


def _trie_json(trie: TrieTrace, spell: Callable[[int], str]) -> dict[str, Any]:
    return {
        "num_live": trie.num_live,
        "parents": trie.parents,
        "texts": [spell(token_id) for token_id in trie.token_ids],
        "accepted": trie.accepted,
        "bonus": trie.bonus,
        "looked_up": trie.looked_up,
    }

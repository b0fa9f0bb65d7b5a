"""Log-probabilities on the device: of given tokens and of the best ones, with one copy to the host."""

import numpy as np
import torch

from specedge.device_copy import Fetching, Upload
from specedge.model.out_of_memory import as_memory_error
from specedge.node_store import IntArray
from specedge.row_chunks import row_chunks
from specedge.row_scoring import only_numbers_
from specedge_verifier.pending_tokens import PendingTokens
from specedge_verifier.step_logprobs import LogprobTable


class PendingLogprobs:
    """Log-probabilities on their way from the device.

    Args:
        logits: float32 [rows, vocab].
        rows: int64 [num_rows] which of them.
        token_ids: int64 [num_rows] the token asked about at each.
        num_top: how many of the best tokens.
    """

    def __init__(self, logits: torch.Tensor, rows: IntArray, token_ids: IntArray, num_top: int) -> None:
        self._num_top = num_top = min(num_top, logits.shape[1])
        upload = Upload()
        upload.add(np.stack((rows, token_ids)))
        index, own_ids = upload.send(logits.device)[0]
        parts = [
            _table(logits.index_select(0, index[part]), own_ids[part], num_top)
            for part in row_chunks(len(rows), logits.shape[1], logits.device)
        ]
        self._fetching = Fetching(torch.cat(parts) if len(parts) > 1 else parts[0])

    def result(self) -> LogprobTable:
        """Waits for them."""
        table = self._fetching.result().astype(np.float32, copy=False)
        width = 1 + self._num_top
        return LogprobTable(table[:, 0], np.ascontiguousarray(table[:, width:]).view(np.int32), table[:, 1:width])


def _table(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> torch.Tensor:
    """The token's own log-probability, the best ones', and their ids' bits: float32 [rows, 1 + 2 * num_top]."""
    logits = only_numbers_(logits)
    top = logits.topk(num_top, dim=-1)
    values = torch.cat((logits.gather(1, token_ids[:, None]), top.values), dim=-1)
    values -= logits.logsumexp(dim=-1, keepdim=True)
    return torch.cat((values, top.indices.int().view(torch.float32)), dim=-1)


class ScoredStep:
    """Implements `PendingTokens` and `ScoredTokens`.

    Args:
        chosen: the step's tokens.
        logits: float32 [sampling rows, vocab]; they stay as they are until the step has been finished.
        prompt: log-probabilities of prompt tokens, where there are any.
    """

    def __init__(self, chosen: PendingTokens, logits: torch.Tensor, prompt: PendingLogprobs | None) -> None:
        self._chosen = chosen
        self._logits = logits
        self._prompt = prompt

    @property
    def is_ready(self) -> bool:
        """See `PendingTokens.is_ready`."""
        return self._chosen.is_ready

    @as_memory_error()
    def tokens(self) -> IntArray:
        """See `PendingTokens.tokens`."""
        return np.asarray(self._chosen.tokens())

    @as_memory_error()
    def prompt_logprobs(self) -> LogprobTable:
        """See `ScoredTokens.prompt_logprobs`."""
        assert self._prompt is not None, "no row of a prompt was asked for"
        return self._prompt.result()

    @as_memory_error()
    def logprobs(self, rows: IntArray, token_ids: IntArray, num_top: int) -> LogprobTable:
        """See `ScoredTokens.logprobs`."""
        return PendingLogprobs(self._logits, rows, token_ids, num_top).result()

"""min_p, top_k and top_p on batches of rows, in place: a filtered token's score becomes minus infinity.

Each filter keeps the first tokens of the row's ranking (higher score first, lower id first among equals), so it comes
down to finding the last token kept. Ranking uses integers that hold score and id together: they are all different, so
the result does not depend on how a device breaks ties, and no row is sorted further than its filter needs.
"""

from typing import Final

import torch
from torch import Tensor

from specedge.reference_sampler import MASS_BITS

_BUCKETS_PER_UNIT: Final = 64
_NUM_BUCKETS: Final = 2048
_ALL_BUT_SIGN: Final = 0x7FFFFFFF
_MAX_ID: Final = 0xFFFFFFFF
_LOWEST_KEY: Final = -0x7F800001 << 32
"""Not above any token's key; its score is minus infinity."""


def keep_min_p(scores: Tensor, log_min_p: Tensor) -> None:
    """Keep tokens whose probability is at least min_p times the best one's.

    Args:
        scores: float32 [rows, vocab].
        log_min_p: float32 [rows]; minus infinity keeps every token of the row.
    """
    floor = scores.amax(dim=-1, keepdim=True) + log_min_p[:, None]
    scores.masked_fill_(scores < floor, -torch.inf)


def keep_top_k(scores: Tensor, top_k: Tensor, max_top_k: int, top_p: Tensor | None) -> None:
    """Keep the top_k best tokens of each row and, of those, the nucleus.

    Args:
        scores: float32 [rows, vocab].
        top_k: int64 [rows], 1..vocab.
        max_top_k: the largest of them, known without asking the device.
        top_p: float64 [rows], above 1 for a row without a nucleus; None when no row has one.
    """
    keys = _rank_keys(scores)
    leaders = keys.topk(max_top_k, dim=-1).values  # [rows, max_top_k]
    is_kept = torch.arange(max_top_k, device=scores.device) < top_k[:, None]
    if top_p is not None:
        leading_scores = _scores_of(leaders)
        mass = _mass(leading_scores, _finite_best(leading_scores)).masked_fill_(~is_kept, 0)
        mass_sums = mass.cumsum(dim=-1)
        is_kept &= mass_sums - mass < _mass_wanted(mass_sums[:, -1], top_p)
    _drop_after(scores, keys, _last_kept(leaders, is_kept))


def keep_top_p(scores: Tensor, top_p: Tensor) -> None:
    """Keep the smallest set of best tokens whose probability reaches top_p; the best token always stays.

    A histogram of probability over distance from the best score tells in which bucket the nucleus ends, so that only
    the few tokens of that bucket are ranked, however large the nucleus is.

    Args:
        scores: float32 [rows, vocab].
        top_p: float64 [rows], below 1.
    """
    best = _finite_best(scores)
    mass = _mass(scores, best)
    mass_wanted = _mass_wanted(mass.sum(dim=-1), top_p)
    bucket = (best - scores).mul_(_BUCKETS_PER_UNIT).clamp_(max=_NUM_BUCKETS - 1).long()  # [rows, vocab]
    bucket_mass = mass.new_zeros(len(scores), _NUM_BUCKETS).scatter_add_(1, bucket, mass)
    mass_sums = bucket_mass.cumsum(dim=-1)
    last_bucket = torch.searchsorted(mass_sums, mass_wanted)

    is_undecided = bucket == last_bucket
    width = max(1, int(is_undecided.sum(dim=-1).amax()))
    keys = _rank_keys(scores)
    leaders = keys.masked_fill(~is_undecided, _LOWEST_KEY).topk(width, dim=-1).values
    mass = _mass(_scores_of(leaders), best)
    mass_before = (mass_sums - bucket_mass).gather(1, last_bucket) + mass.cumsum(dim=-1) - mass
    _drop_after(scores, keys, _last_kept(leaders, mass_before < mass_wanted))


def _rank_keys(scores: Tensor) -> Tensor:
    """int64 [rows, vocab]: greater means better. The high half orders like the score, the low half prefers low ids."""
    bits = (scores + 0.0).view(torch.int32)  # adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0
    ordered = (bits >> 31).bitwise_and_(_ALL_BUT_SIGN).bitwise_xor_(bits)
    low_ids_first = torch.arange(_MAX_ID, _MAX_ID - scores.shape[-1], -1, device=scores.device)
    return ordered.long().mul_(2**32).add_(low_ids_first)


def _scores_of(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & _ALL_BUT_SIGN)).view(torch.float32)


def _finite_best(scores: Tensor) -> Tensor:
    """The best score of each row, [rows, 1]; the lowest float where every score is minus infinity."""
    return scores.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)


def _mass(scores: Tensor, best: Tensor) -> Tensor:
    """Probabilities as integers, in units of 2**-MASS_BITS of the row's best one; too small ones become 0."""
    return (scores - best).exp_().mul_(2.0**MASS_BITS).long()


def _mass_wanted(total_mass: Tensor, top_p: Tensor) -> Tensor:
    """The mass at which a nucleus is complete, int64 [rows, 1]; at most the total where top_p is below 1."""
    return (total_mass.double() * top_p).ceil_().long()[:, None]


def _last_kept(leaders: Tensor, is_kept: Tensor) -> Tensor:
    """The key of the last kept token of each row, [rows, 1]; the best token's when nothing has any probability."""
    return leaders.gather(1, is_kept.sum(dim=-1, keepdim=True).clamp_(min=1) - 1)


def _drop_after(scores: Tensor, keys: Tensor, last_kept: Tensor) -> None:
    scores.masked_fill_(keys < last_kept, -torch.inf)

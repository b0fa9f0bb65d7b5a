"""min_p, top_k and top_p on batches of rows: a filtered token's score becomes minus infinity.

Each filter keeps the first tokens of the row's ranking (higher score first, lower id first among equals), so it comes
down to finding the last token kept. Ranking uses integers that hold score and id together: they are all different, so
the result does not depend on how a device breaks ties, and no row is sorted further than its filter needs.

Hardly ever is more than a hundred tokens kept. So `keep_leaders` ranks that many, applies all filters to them and tells
which rows would have kept more; `keep_min_p`, `keep_top_k` and `keep_top_p` do such rows in place, whatever they keep.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from specedge.reference_sampler import MASS_BITS
from specedge.row_chunks import row_chunks

_BUCKETS_PER_UNIT: Final = 64
_NUM_BUCKETS: Final = 2048
_ALL_BUT_SIGN: Final = 0x7FFFFFFF
_MAX_ID: Final = 0xFFFFFFFF
_LOWEST_KEY: Final = -0x7F800001 << 32
"""Not above any token's key; its score is minus infinity."""

_NO_WAIT: Final = ("cpu",)
"""Kinds of device whose results are on the host as soon as they are asked for."""

NARROW: Final = 2**14
"""A vocabulary up to here is ranked whole with little more effort than its best tokens."""

_BLOCK: Final = 64
"""Tokens whose best one stands for all when leaders are looked for."""


class Limits(NamedTuple):
    """The filters of a batch of rows.

    Attributes:
        top_k: int64 [rows]; above the vocabulary: no limit.
        log_min_p: float32 [rows]; minus infinity: no limit. None: no row has one.
        top_p: float64 [rows]; above 1: no limit. None: no row has one.
        plain_nuclei: int64 [num_plain], the rows whose only limit is top_p, so that their whole vocabulary's mass
            counts; None: all rows.
    """

    top_k: Tensor
    log_min_p: Tensor | None
    top_p: Tensor | None
    plain_nuclei: Tensor | None


class Leaders(NamedTuple):
    """The best tokens of each row, best first.

    Attributes:
        token_ids: int64 [rows, width].
        scores: float32 [rows, width]; minus infinity where filtered.
        is_cut: bool [rows], whether the row's filters may keep tokens that are not among the leaders.
    """

    token_ids: Tensor
    scores: Tensor
    is_cut: Tensor


def keep_leaders(scores: Tensor, width: int, limits: Limits) -> Leaders:
    """The `width` best tokens of each row that its filters keep; nothing waits for the device.

    Args:
        scores: float32 [rows, vocab], without NaN.
        width: 1..vocab.
        limits: the rows' filters.
    """
    token_ids = _ids_of(leading_keys(scores, width))
    leading = scores.gather(1, token_ids)
    best = leading[:, :1]
    is_kept = torch.arange(width, device=scores.device) < limits.top_k[:, None]
    if limits.log_min_p is not None:
        is_kept &= leading >= best + limits.log_min_p[:, None]
        is_cut_early = is_kept[:, -1] & (limits.log_min_p > -torch.inf)  # then its nucleus is part of an unknown mass
    if limits.top_p is not None:
        is_kept &= _is_nucleus(scores, leading, best, is_kept, limits.top_p, limits.plain_nuclei)
    is_kept[:, 0] = True
    is_cut = is_kept[:, -1] if limits.log_min_p is None else is_kept[:, -1] | is_cut_early
    return Leaders(token_ids, leading.masked_fill(~is_kept, -torch.inf), is_cut & (limits.top_k > width))


def _is_nucleus(
    scores: Tensor, leading: Tensor, best: Tensor, is_kept: Tensor, top_p: Tensor, plain_nuclei: Tensor | None
) -> Tensor:
    """Which of the kept leaders complete a mass of top_p, bool [rows, width]; for the rest see `keep_leaders`."""
    best = best.clamp(min=torch.finfo(torch.float32).min)
    mass = _mass(leading, best).masked_fill_(~is_kept, 0)
    mass_sums = mass.cumsum(dim=-1)
    if plain_nuclei is None:
        total = _total_mass(scores, best)
    else:
        total = mass_sums[:, -1]
        if len(plain_nuclei) > 0:
            all_mass = _total_mass(scores.index_select(0, plain_nuclei), best.index_select(0, plain_nuclei))
            total = total.index_copy(0, plain_nuclei, all_mass)
    return mass_sums - mass < _mass_wanted(total, top_p)


def leading_keys(scores: Tensor, width: int) -> Tensor:
    """The keys of the `width` best tokens of each row, best first, int64 [rows, width]."""
    if not has_blocks(scores, width):
        return _rank_keys(scores).topk(width, dim=-1).values
    best = block_bests(scores)
    chosen = _ids_of(_rank_keys(best).topk(width, dim=-1).values)  # among equals, lower blocks first
    return _rank_keys(*nominees(scores, chosen)).topk(width, dim=-1).values


def has_blocks(scores: Tensor, width: int) -> bool:
    """Whether the `width` best tokens of each row are sooner found in the blocks whose own best tokens are the best.

    Then a wide vocabulary is read once and never ranked whole.
    """
    return 2 * width <= scores.shape[1] // _BLOCK


def block_bests(scores: Tensor) -> Tensor:
    """The best score of each block, [rows, num_blocks]; a rest that is no whole block does not count."""
    return _blocks(scores).amax(dim=-1)


def nominees(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of all tokens in the chosen blocks, int64 [rows, num_chosen], and in the rest: [rows, width]."""
    blocks = _blocks(scores)
    nominated = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    token_ids = ((chosen * _BLOCK)[:, :, None] + torch.arange(_BLOCK, device=scores.device)).flatten(1)
    first, vocab_size = blocks.shape[1] * _BLOCK, scores.shape[1]
    if first == vocab_size:
        return nominated, token_ids
    rest = torch.arange(first, vocab_size, device=scores.device).expand(len(scores), -1)
    return torch.cat((nominated, scores[:, first:]), dim=1), torch.cat((token_ids, rest), dim=1)


def _blocks(scores: Tensor) -> Tensor:
    num_blocks = scores.shape[1] // _BLOCK
    return scores[:, : num_blocks * _BLOCK].view(len(scores), num_blocks, _BLOCK)


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
    keys = _rank_keys(scores)
    leaders = keys.masked_fill(~is_undecided, _LOWEST_KEY).topk(_width(is_undecided), dim=-1).values
    mass = _mass(_scores_of(leaders), best)
    mass_before = (mass_sums - bucket_mass).gather(1, last_bucket) + mass.cumsum(dim=-1) - mass
    _drop_after(scores, keys, _last_kept(leaders, mass_before < mass_wanted))


def _rank_keys(scores: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """int64 like scores: greater means better. The high half orders like the score, the low half prefers low ids.

    Args:
        scores: float32 [rows, width].
        token_ids: int64 [rows, width] the scores belong to; None: 0..width - 1.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0
    ordered = (bits >> 31).bitwise_and_(_ALL_BUT_SIGN).bitwise_xor_(bits)
    if token_ids is None:
        low_ids_first = torch.arange(_MAX_ID, _MAX_ID - scores.shape[-1], -1, device=scores.device)
    else:
        low_ids_first = _MAX_ID - token_ids
    return torch.add(low_ids_first, ordered, alpha=2**32)


def _ids_of(keys: Tensor) -> Tensor:
    return _MAX_ID - keys.bitwise_and(_MAX_ID)


def _width(is_undecided: Tensor) -> int:
    """How many leaders of each row decide where its nucleus ends; no fewer than the longest bucket has.

    Asking a device how many that are makes the host wait for it, so a narrow vocabulary is ranked whole there. A wide
    one comes here with the rows that were cut alone, when the host has waited and the device has nothing else to do.
    """
    if is_undecided.shape[1] <= NARROW and is_undecided.device.type not in _NO_WAIT:
        return is_undecided.shape[1]
    return max(1, int(is_undecided.sum(dim=-1).amax()))


def _scores_of(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & _ALL_BUT_SIGN)).view(torch.float32)


def _finite_best(scores: Tensor) -> Tensor:
    """The best score of each row, [rows, 1]; the lowest float where every score is minus infinity."""
    return scores.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)


def _mass(scores: Tensor, best: Tensor) -> Tensor:
    """Probabilities as integers, in units of 2**-MASS_BITS of the row's best one; too small ones become 0."""
    return (scores - best).exp_().mul_(2.0**MASS_BITS).long()


def _total_mass(scores: Tensor, best: Tensor) -> Tensor:
    """The mass of each row, int64 [rows]."""
    total = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    for rows in row_chunks(len(scores), scores.shape[1], scores.device):
        torch.sum(_mass(scores[rows], best[rows]), dim=-1, out=total[rows])
    return total


def _mass_wanted(total_mass: Tensor, top_p: Tensor) -> Tensor:
    """The mass at which a nucleus is complete, int64 [rows, 1]; at most the total where top_p is below 1."""
    return (total_mass.double() * top_p).ceil_().long()[:, None]


def _last_kept(leaders: Tensor, is_kept: Tensor) -> Tensor:
    """The key of the last kept token of each row, [rows, 1]; the best token's when nothing has any probability."""
    return leaders.gather(1, is_kept.sum(dim=-1, keepdim=True).clamp_(min=1) - 1)


def _drop_after(scores: Tensor, keys: Tensor, last_kept: Tensor) -> None:
    scores.masked_fill_(keys < last_kept, -torch.inf)

# mypy: ignore-errors
# ruff: noqa: N803, N806, RUF005
# Triton compiles these functions from their source: they are Python by syntax only, with its spelling of constants.
"""Tree attention over KV slots, as two Triton kernels: one attends, one merges what several programs computed of a row.

Rows and query heads that share a KV head are packed into one tile (packed row p is row p // G, head p % G of the G
heads), so that a key is loaded once for all of them.

Rule 1. Blocks of keys and splits of blocks begin at fixed indices of the context, whatever the batch, the chunk or the
        tree: for a prefix, a chain, a root and a first path of nodes, index is position.
Rule 2. Within a split, blocks are folded in order into (max, sum, accumulator); the splits of a row are merged in order
        with the same arithmetic, in registers or by the second kernel.
Rule 3. What a row does not see adds exactly zero.
Hence a row's result depends on what it attends to and not on how the work was divided. Products that are added to
something are written as explicit fma, so that the compiler has no choice of its own.

Scores stay unscaled in `peak`; `scale` holds log2(e) times the attention's scale.
"""

import triton
import triton.language as tl


@triton.jit
def _or_zero(peak):
    """The peak, or 0 where nothing has been seen yet: keeps differences of infinities out."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _merge(peak, total, acc, other_peak, other_total, other_acc, scale):
    """Fold a split into what was merged before it."""
    new_peak = tl.maximum(peak, other_peak)
    base = _or_zero(new_peak)
    weight = tl.exp2((peak - base) * scale)
    other_weight = tl.exp2((other_peak - base) * scale)
    new_total = tl.fma(total, weight, other_total * other_weight)
    new_acc = ()
    for part in tl.static_range(len(acc)):
        wide = tl.broadcast_to(weight[:, None], acc[part].shape)
        new_acc = new_acc + (tl.fma(acc[part], wide, other_acc[part] * other_weight[:, None]),)
    return new_peak, new_total, new_acc


@triton.jit
def _zeros(ROWS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    acc = ()
    for _ in tl.static_range(PARTS):
        acc = acc + (tl.zeros((ROWS, WIDTH), tl.float32),)
    return acc


@triton.jit
def _load_slots(pointer, slots, slot_stride, columns, HEAD_DIM: tl.constexpr, IS_PADDED: tl.constexpr):
    """[slots, columns] keys or values of one KV head."""
    addresses = pointer + slots.to(tl.int64)[:, None] * slot_stride + columns[None, :]
    if IS_PADDED:
        return tl.load(addresses, mask=columns[None, :] < HEAD_DIM, other=0.0)
    return tl.load(addresses)


@triton.jit
def _store_parts(pointer, rows, parts, is_wanted, HEAD_DIM: tl.constexpr):
    """Store [rows, HEAD_DIM], which lies side by side in parts, at the rows' offsets."""
    WIDTH: tl.constexpr = parts[0].shape[1]
    for part in tl.static_range(len(parts)):
        columns = part * WIDTH + tl.arange(0, WIDTH)
        wanted = is_wanted[:, None] & (columns < HEAD_DIM)[None, :]
        tl.store(pointer + rows[:, None] + columns[None, :], parts[part].to(pointer.dtype.element_ty), mask=wanted)


@triton.jit
def _divided(parts, total):
    quotients = ()
    for part in tl.static_range(len(parts)):
        quotients = quotients + (parts[part] / total[:, None],)
    return quotients


@triton.jit
def _sees(words, num_words, start, columns):
    """[rows, columns] bits of a tree's mask for the block of tail tokens that begins at `start`.

    A block may begin anywhere in the tail, or before it; what lies before the tail is seen by all.

    Args:
        words: [rows] pointers to each row's mask words.
    """
    word = start >> 6  # rounds down, also below zero
    shift = (start & 63).to(tl.uint64)
    low = tl.load(words + word, mask=(word >= 0) & (word < num_words), other=0).to(tl.uint64, bitcast=True)
    high = tl.load(words + word + 1, mask=(word + 1 >= 0) & (word + 1 < num_words), other=0).to(tl.uint64, bitcast=True)
    before = tl.full(low.shape, 0xFFFFFFFFFFFFFFFF, tl.uint64)
    low = tl.where(word < 0, before, low)
    high = tl.where(word + 1 < 0, before, high)
    bits = (low >> shift) | ((high << 1) << (63 - shift))
    return ((bits[:, None] >> columns[None, :].to(tl.uint64)) & 1) != 0


@triton.jit
def _fold(
    peak,
    total,
    acc,
    q,
    keys_base,
    values_base,
    slots,
    slot_stride,
    seen,
    scale,
    IS_MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold one block of slots into a split."""
    IS_PADDED: tl.constexpr = HEAD_DIM < BLOCK_D
    keys = _load_slots(keys_base, slots, slot_stride, tl.arange(0, BLOCK_D), HEAD_DIM, IS_PADDED)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    if IS_MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    base = _or_zero(new_peak)
    shift = tl.broadcast_to((-base * scale)[:, None], scores.shape)
    weights = tl.exp2(tl.fma(scores, tl.full(scores.shape, 1.0, tl.float32) * scale, shift))
    decay = tl.exp2((peak - base) * scale)
    new_total = tl.fma(total, decay, tl.sum(weights, 1))
    weights = weights.to(keys.dtype)
    new_acc = ()
    WIDTH: tl.constexpr = acc[0].shape[1]
    for part in tl.static_range(len(acc)):
        columns = part * WIDTH + tl.arange(0, WIDTH)
        values = _load_slots(values_base, slots, slot_stride, columns, HEAD_DIM, IS_PADDED)
        new_acc = new_acc + (tl.dot(weights, values, acc[part] * decay[:, None], input_precision=PRECISION),)
    return new_peak, new_total, new_acc


@triton.jit(do_not_specialize=["num_words", "window"])
def attend_kernel(
    out,  # [num_rows, num_heads, HEAD_DIM]
    q,  # [num_rows, num_heads, HEAD_DIM]
    layer_keys,  # [num_slots, num_kv_heads, HEAD_DIM]
    layer_values,  # [num_slots, num_kv_heads, HEAD_DIM]
    items,  # int32 [num_items, 8]: segment, first packed row, first split, end of splits, first partial row or -1
    row_starts,
    context_starts,
    context_slots,
    num_tails,
    is_chain,
    mask_words,
    positions,
    tail_starts,
    tail_positions,
    partial_accs,  # float32 [num_partial_rows, num_kv_heads, HEAD_DIM]
    partial_sums,  # float32 [num_partial_rows, num_kv_heads, 2]: peak, total
    scale,
    num_words,
    window,
    q_stride,
    out_stride,
    slot_stride,
    G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one tile of packed rows, one KV head, consecutive splits of the tile's context."""
    item = items + tl.program_id(0) * 8
    kv_head = tl.program_id(1)
    first_split = tl.load(item + 2)
    end_split = tl.load(item + 3)
    if first_split >= end_split:
        return
    segment = tl.load(item)
    tile_start = tl.load(item + 1)
    partial_start = tl.load(item + 4)
    row_start = tl.load(row_starts + segment)
    num_rows = tl.load(row_starts + segment + 1) - row_start
    context_start = tl.load(context_starts + segment)
    num_context = tl.load(context_starts + segment + 1) - context_start
    prefix = num_context - tl.load(num_tails + segment)
    chain = tl.load(is_chain + segment) != 0
    tail_start = tl.load(tail_starts + segment)

    packed = tile_start + tl.arange(0, BLOCK_M)
    is_row = packed < num_rows * G
    row = tl.minimum(packed // G, num_rows - 1)
    head = kv_head * G + packed % G
    columns = tl.arange(0, BLOCK_D)
    q_rows = (row_start + row).to(tl.int64) * q_stride + head * HEAD_DIM
    queries = tl.load(q + q_rows[:, None] + columns[None, :], mask=(columns < HEAD_DIM)[None, :], other=0.0)
    position = tl.load(positions + row_start + row)
    words = mask_words + (row_start + row).to(tl.int64) * num_words
    keys_base = layer_keys + kv_head * HEAD_DIM
    values_base = layer_values + kv_head * HEAD_DIM
    slots_base = context_slots + context_start

    # Indices below `open_stop` are seen by every row of the tile, those from `stop` on by none.
    last_row = tl.minimum((tile_start + BLOCK_M - 1) // G, num_rows - 1)
    open_stop = tl.where(chain, prefix + tile_start // G + 1, prefix)
    stop = tl.where(chain, prefix + last_row + 1, num_context)
    start = 0
    if HAS_WINDOW:
        open_stop = 0
        start = tl.minimum(tl.maximum(tl.min(position) - window + 1, 0), prefix) // BLOCK_N * BLOCK_N
    open_stop = open_stop // BLOCK_N * BLOCK_N

    offsets = tl.arange(0, BLOCK_N)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = _zeros(BLOCK_M, BLOCK_D // NUM_PARTS, NUM_PARTS)
    for split in range(first_split, end_split):
        split_peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        split_total = tl.zeros((BLOCK_M,), tl.float32)
        split_acc = _zeros(BLOCK_M, BLOCK_D // NUM_PARTS, NUM_PARTS)
        begin = tl.maximum(split * SPLIT, start)
        middle = tl.maximum(tl.minimum(open_stop, (split + 1) * SPLIT), begin)
        end = tl.minimum(stop, (split + 1) * SPLIT)
        for index in range(begin, middle, BLOCK_N):
            slots = tl.load(slots_base + index + offsets)
            split_peak, split_total, split_acc = _fold(
                split_peak,
                split_total,
                split_acc,
                queries,
                keys_base,
                values_base,
                slots,
                slot_stride,
                None,
                scale,
                False,
                HEAD_DIM,
                BLOCK_D,
                PRECISION,
            )
        for index in range(middle, end, BLOCK_N):
            indices = index + offsets
            # Beyond its end the context's last slot is read: another session's values must not get near this one.
            slots = tl.load(slots_base + tl.minimum(indices, num_context - 1))
            if chain:
                seen = indices[None, :] <= prefix + row[:, None]
            else:
                seen = _sees(words, num_words, index - prefix, offsets)
            seen = seen & (indices < num_context)[None, :]
            if HAS_WINDOW:
                in_tail = (indices >= prefix) & (indices < num_context)
                tail = tl.load(tail_positions + tail_start + indices - prefix, mask=in_tail, other=0)
                key_position = tl.where(in_tail, tail, indices)
                seen = seen & (position[:, None] - key_position[None, :] < window)
            split_peak, split_total, split_acc = _fold(
                split_peak,
                split_total,
                split_acc,
                queries,
                keys_base,
                values_base,
                slots,
                slot_stride,
                seen,
                scale,
                True,
                HEAD_DIM,
                BLOCK_D,
                PRECISION,
            )
        if partial_start < 0:
            peak, total, acc = _merge(peak, total, acc, split_peak, split_total, split_acc, scale)
        else:
            num_packed = tl.minimum(num_rows * G - tile_start, BLOCK_M)
            partial = (partial_start + split * num_packed + packed - tile_start).to(tl.int64)
            partial = partial * tl.num_programs(1) + kv_head
            tl.store(partial_sums + partial * 2, split_peak, mask=is_row)
            tl.store(partial_sums + partial * 2 + 1, split_total, mask=is_row)
            has_seen = is_row & (split_peak > float("-inf"))
            _store_parts(partial_accs, partial * HEAD_DIM, split_acc, has_seen, HEAD_DIM)
    if partial_start < 0:
        out_rows = (row_start + row).to(tl.int64) * out_stride + head * HEAD_DIM
        _store_parts(out, out_rows, _divided(acc, total), is_row, HEAD_DIM)


@triton.jit
def merge_kernel(
    out,  # [num_rows, num_heads, HEAD_DIM]
    merges,  # int32 [num_merges, 4]: segment, first packed row, number of splits (0: nothing to do), first partial row
    row_starts,
    partial_accs,
    partial_sums,
    scale,
    out_stride,
    G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
):
    """One program: a few packed rows of one tile, one KV head, all splits in order."""
    merge = merges + tl.program_id(0) // (BLOCK_M // MERGE_ROWS) * 4
    kv_head = tl.program_id(1)
    num_splits = tl.load(merge + 2)
    if num_splits == 0:
        return
    segment = tl.load(merge)
    tile_start = tl.load(merge + 1)
    partial_start = tl.load(merge + 3)
    row_start = tl.load(row_starts + segment)
    num_rows = tl.load(row_starts + segment + 1) - row_start
    num_packed = tl.minimum(num_rows * G - tile_start, BLOCK_M)
    in_tile = tl.program_id(0) % (BLOCK_M // MERGE_ROWS) * MERGE_ROWS + tl.arange(0, MERGE_ROWS)
    is_row = in_tile < num_packed
    columns = tl.arange(0, BLOCK_D)

    peak = tl.full((MERGE_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((MERGE_ROWS,), tl.float32)
    acc = _zeros(MERGE_ROWS, BLOCK_D, 1)
    for split in tl.range(0, num_splits, num_stages=4):
        partial = (partial_start + split * num_packed + in_tile).to(tl.int64) * tl.num_programs(1) + kv_head
        split_peak = tl.load(partial_sums + partial * 2, mask=is_row, other=float("-inf"))
        split_total = tl.load(partial_sums + partial * 2 + 1, mask=is_row, other=0.0)
        split_acc = tl.load(
            partial_accs + partial[:, None] * HEAD_DIM + columns[None, :],
            mask=is_row[:, None] & (columns < HEAD_DIM)[None, :],
            other=0.0,
        )
        # Nothing was written where nothing was seen.
        split_acc = tl.where((split_peak > float("-inf"))[:, None], split_acc, 0.0)
        peak, total, acc = _merge(peak, total, acc, split_peak, split_total, (split_acc,), scale)
    total = tl.where(is_row, total, 1.0)
    packed = tile_start + in_tile
    out_rows = (row_start + packed // G).to(tl.int64) * out_stride + (kv_head * G + packed % G) * HEAD_DIM
    _store_parts(out, out_rows, _divided(acc, total), is_row, HEAD_DIM)

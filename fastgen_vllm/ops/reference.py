"""The ops in plain PyTorch, one obvious loop each: what the kernels are tested against.

Same signatures and effects as the wrappers beside this file; float32 arithmetic, any device.
"""

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.pages.fold import locate


def page_of(arena: Tensor, layer: int, block: int, head: int) -> tuple[Tensor, Tensor]:
    """Views of a page's K ``[D, S]`` (column-major) and V ``[S, D]``."""
    page = arena[layer, block, head]
    slots, head_size = page.shape[0] // 2, page.shape[1]
    return page[:slots].view(head_size, slots), page[slots:]


def slots_of(
    arena: Tensor, row: Tensor, record: Tensor, slots: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Physical block, page in the block and slot in the page of each of a head's slots.

    ``slots`` defaults to those in use, ``0 .. LENGTH-1``.
    """
    num_layers, _, num_heads, rows, _ = arena.shape
    if slots is None:
        slots = torch.arange(int(record[HeadField.LENGTH]))
    return locate(slots, record, row, num_layers * num_heads, rows // 2)


def slot_of(arena: Tensor, row: Tensor, record: Tensor, slot: int) -> tuple[int, int, int]:
    """``slots_of`` for one slot, as integers."""
    block, page, in_page = slots_of(arena, row, record, torch.tensor([slot]))
    return int(block), int(page), int(in_page)


def keys_and_values(
    arena: Tensor, row: Tensor, record: Tensor, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """K and V ``[length, D]`` of a head's first slots, in order; by default of all in use."""
    if length is None:
        length = int(record[HeadField.LENGTH])
    num_heads, slots = arena.shape[2], arena.shape[3] // 2
    keys, values = [], []
    for first in range(0, length, slots):
        block, page, _ = slot_of(arena, row, record, first)
        k, v = page_of(arena, page // num_heads, block, page % num_heads)
        keys.append(k.T)
        values.append(v)
    return torch.cat(keys)[:length], torch.cat(values)[:length]


def prompt_keys(arena: Tensor, row: Tensor, record: Tensor, end: int) -> Tensor:
    """K ``[D, end]`` float32 of a head's first slots."""
    return keys_and_values(arena, row, record, end)[0].T.float()


def pooled(probability: Tensor, pool: str) -> Tensor:
    """Reduce ``[..., G, N]`` to ``[..., N]``."""
    if pool == "mean":
        return probability.mean(-2)
    return probability.amax(-2) if pool == "max" else probability.amin(-2)


def attention_mass(
    query: Tensor,
    arena: Tensor,
    layer: int,
    block_row: Tensor,
    heads: Tensor,
    first_position: int,
    scale: float,
    pool: str,
    mass: Tensor,
    energy: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.attention_mass``."""
    num_heads = arena.shape[2]
    group = query.shape[1] // num_heads
    end = first_position + query.shape[0]
    for head in range(num_heads):
        keys = prompt_keys(arena, block_row, heads[layer, head], end)
        for i, q in enumerate(query[:, head * group : (head + 1) * group].float()):
            seen = first_position + i + 1
            probability = (q @ keys[:, :seen] * scale).softmax(-1)
            mass[head, :seen] += pooled(probability, pool)
            energy[head, :seen] += pooled(probability.square(), pool)


def turned(query: Tensor, turn: Tensor, interleaved: bool) -> Tensor:
    """``[..., D]`` queries whose first ``2*P`` columns are turned by angles ``turn [2, P]``."""
    cos, sin = turn
    pairs = len(cos)
    first = torch.arange(pairs) * (2 if interleaved else 1)
    second = first + (1 if interleaved else pairs)
    result = query.clone()
    result[..., first] = query[..., first] * cos - query[..., second] * sin
    result[..., second] = query[..., second] * cos + query[..., first] * sin
    return result


def replay(
    query: Tensor,
    arena: Tensor,
    layer: int,
    block_row: Tensor,
    heads: Tensor,
    first_position: int,
    scale: float,
    pool: str,
    turn: Tensor,
    interleaved: bool,
    sample: int,
    values: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.replay``."""
    num_heads, slots = arena.shape[2], arena.shape[3] // 2
    group = query.shape[1] // num_heads
    end = first_position + query.shape[0]
    row, token = torch.arange(first_position, end)[:, None], torch.arange(end)
    beside = torch.isin(token // 32 - row // 32, torch.tensor([0, 1]))
    near = (token <= row) & (token > row - 32)
    weight = torch.ones(end)
    if sample > 1:
        weight = torch.where(token % sample == sample - 1, float(sample), 0.0)
        weight[:4] = 1
    weight = torch.where(beside, 1.0, weight)
    for head in range(num_heads):
        keys = prompt_keys(arena, block_row, heads[layer, head], end)
        rows = query[:, head * group : (head + 1) * group].float().transpose(0, 1)  # [G, W, D]
        far = (turned(rows, turn, interleaved) @ keys * scale) + weight.log()
        own = (rows @ keys * scale).masked_fill(~near, -torch.inf)
        total = torch.cat([far, own], -1).logsumexp(-1, keepdim=True)
        probability = (far - total).exp() * beside  # [G, W, e]
        energy = pooled(probability.square().transpose(0, 1), pool).sum(0)
        fixed = int(heads[layer, head, HeadField.READ_ONLY]) * slots
        valued = torch.arange(max(first_position, min(fixed, end)), end)
        values[slots_of(arena, block_row, heads[layer, head], valued)] += energy[valued]


def replayed_mass(
    query: Tensor,
    arena: Tensor,
    layer: int,
    block_row: Tensor,
    heads: Tensor,
    first_position: int,
    scale: float,
    pool: str,
    turn: Tensor,
    interleaved: bool,
    mass: Tensor,
    energy: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.replayed_mass``."""
    num_heads = arena.shape[2]
    group = query.shape[1] // num_heads
    end = first_position + query.shape[0]
    for head in range(num_heads):
        keys = prompt_keys(arena, block_row, heads[layer, head], end)
        for i, q in enumerate(query[:, head * group : (head + 1) * group].float()):
            own = first_position + i + 1
            near = q @ keys[:, max(0, own - 32) : own] * scale
            far = turned(q, turn, interleaved) @ keys * scale
            probability = torch.cat([far, near], -1).softmax(-1)[:, :end]
            mass[head, :end] += pooled(probability, pool)
            energy[head, :end] += pooled(probability.square(), pool)


def value_norm(arena: Tensor, block_row: Tensor, heads: Tensor, norm: Tensor) -> None:
    """See ``fastgen_vllm.ops.value_norm``."""
    num_layers, num_heads, num_tokens = norm.shape
    for layer in range(num_layers):
        for head in range(num_heads):
            _, values = keys_and_values(arena, block_row, heads[layer, head], num_tokens)
            norm[layer, head] = values.float().norm(dim=-1)


def compact(
    arena: Tensor,
    old_row: Tensor,
    old_heads: Tensor,
    saved: Tensor,
    new_row: Tensor,
    kept: Tensor,
    kept_position: Tensor,
    kept_start: Tensor,
    kept_value: Tensor,
    heads: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.compact``."""
    num_blocks, num_heads = arena.shape[1:3]
    slots = arena.shape[3] // 2
    fields = len(HeadField)
    for index, record in enumerate(heads.view(-1, fields)):
        first = int(kept_start[index])
        stock = int(record[HeadField.STOCK_PAGES]) * slots  # these stay where they are
        for i in range(stock, int(record[HeadField.LENGTH])):
            k = first + i - stock
            old, page, old_slot = slot_of(
                arena, old_row, old_heads.view(-1, fields)[index], int(kept[k])
            )
            source = arena if old < num_blocks else saved
            old_k, old_v = page_of(source, page // num_heads, old % num_blocks, page % num_heads)
            block, page, slot = slot_of(arena, new_row, record, i)
            new_k, new_v = page_of(arena, page // num_heads, block, page % num_heads)
            new_k[:, slot] = old_k[:, old_slot]
            new_v[slot] = old_v[old_slot]
            positions[block, page, slot] = kept_position[k]
            values[block, page, slot] = kept_value[k]


def _granted_pages(record: Tensor, num_tokens: int, slots: int) -> int:
    """Pages that a head may use once its request has stored so many tokens."""
    steps = -(-max(0, num_tokens - int(record[HeadField.ROOM])) // slots)
    period = int(record[HeadField.GROWTH_PERIOD])
    pages = int(record[HeadField.STOCK_PAGES]) + int(record[HeadField.NUM_PAGES])
    return pages + (steps // period if period else 0)


def _victim(record: Tensor, position: Tensor, value: Tensor, token_position: int) -> int:
    """Of slots that may be written, all in use: that which a token at ``token_position`` takes."""
    free = value < float("inf")
    outside = position <= token_position - int(record[HeadField.WINDOW])
    worth = torch.zeros_like(value)
    if bool((free & outside).any()):
        eligible = free & outside
        if StoreRule(int(record[HeadField.RULE])).values_tokens:
            since = position.clamp(min=int(record[HeadField.OBSERVED_FROM]))
            worth = value / (token_position - since).clamp(min=1)
    else:
        eligible = free if bool(free.any()) else torch.ones_like(free)
    least = eligible & (worth == worth[eligible].min())
    return int(position.masked_fill(~least, torch.iinfo(position.dtype).max).argmin())


def store(
    key: Tensor,
    value: Tensor,
    token_index: Tensor,
    lanes: Tensor,
    block_rows: Tensor,
    token_position: Tensor,
    token_class: Tensor,
    layer: int,
    arena: Tensor,
    heads: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.store``."""
    for r, (token, lane) in enumerate(zip(token_index, lanes, strict=True)):
        for head in range(arena.shape[2]):
            store_in_head(
                heads[lane, layer, head],
                block_rows[r],
                key[token, head],
                value[token, head],
                int(token_position[r]),
                int(token_class[r]),
                arena,
                positions,
                values,
            )


def store_in_head(
    record: Tensor,
    row: Tensor,
    key: Tensor,
    value: Tensor,
    token_position: int,
    token_class: int,
    arena: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """Store the ``key`` and ``value`` ``[D]`` of one token; ``record`` changes in place."""
    num_heads, slots = arena.shape[2], arena.shape[3] // 2
    length = int(record[HeadField.LENGTH])
    granted = _granted_pages(record, token_position + 1, slots)
    if record[HeadField.RULE] == StoreRule.APPEND or length < granted * slots:
        chosen = length
        record[HeadField.LENGTH] += 1
    else:
        fixed = int(record[HeadField.READ_ONLY]) * slots
        where = slots_of(arena, row, record, torch.arange(fixed, length))
        chosen = fixed + _victim(record, positions[where], values[where], token_position)
    block, page, slot = slot_of(arena, row, record, chosen)
    k, v = page_of(arena, page // num_heads, block, page % num_heads)
    k[:, slot] = key
    v[slot] = value
    protected = token_class & int(record[HeadField.PROTECTS]) != 0
    positions[block, page, slot] = token_position
    values[block, page, slot] = float("inf") if protected else 0.0


def decode_attention(
    query: Tensor,
    token_index: Tensor,
    lanes: Tensor,
    block_rows: Tensor,
    layer: int,
    scale: float,
    pool: str,
    arena: Tensor,
    heads: Tensor,
    values: Tensor,
    output: Tensor,
) -> None:
    """See ``fastgen_vllm.ops.decode_attention``."""
    num_heads = arena.shape[2]
    group = query.shape[1] // num_heads
    for r, (token, lane) in enumerate(zip(token_index, lanes, strict=True)):
        for head in range(num_heads):
            of_head = slice(head * group, (head + 1) * group)
            output[token, of_head] = attend_to_head(
                heads[lane, layer, head],
                block_rows[r],
                query[token, of_head],
                scale,
                pool,
                arena,
                values,
            )


def attend_to_head(
    record: Tensor,
    row: Tensor,
    query: Tensor,
    scale: float,
    pool: str,
    arena: Tensor,
    values: Tensor,
) -> Tensor:
    """Return ``[G, D]`` for a ``query`` like it; ``values`` change in place."""
    keys, vals = keys_and_values(arena, row, record)
    probability = (query.float() @ keys.float().T * scale).softmax(-1)
    rule = StoreRule(int(record[HeadField.RULE]))
    if rule.values_tokens:
        gained = probability.square() if rule == StoreRule.BY_ENERGY else probability
        fixed = min(len(keys), int(record[HeadField.READ_ONLY]) * (arena.shape[3] // 2))
        valued = slots_of(arena, row, record, torch.arange(fixed, len(keys)))
        values[valued] += pooled(gained, pool)[fixed:]
    return (probability @ vals.float()).to(query.dtype)

import pytest
import torch

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.pages.fold import fold_heads
from tests.ops.cases import HeadPlan, generator, make_cache, make_records, random_blocks

L, H, S, D = 2, 3, 32, 32


@pytest.mark.parametrize("layer", range(L))
def test_folded_tables_lead_to_the_slots_of_the_reference(layer: int) -> None:
    plans = [
        HeadPlan(1),
        HeadPlan(3 * S, fixed=1),
        HeadPlan(2 * S + 5, StoreRule.BY_VALUE, fixed=1, growth_period=1),
        HeadPlan(S, StoreRule.BY_AGE),
        HeadPlan(5 * S + 1, fixed=2),
        HeadPlan(S + 1, StoreRule.BY_ENERGY),
    ]
    records, pages = make_records(plans, L, H, S)
    blocks = -(-pages // (L * H))
    rng = generator("fold", layer)
    rows = random_blocks(2 * blocks, 2 * blocks + 3, rng).view(2, blocks)
    cache = make_cache(torch.float32, L, 2 * blocks + 3, H, S, D)
    B = cache.arena.shape[1]
    folded = fold_heads(records[layer].expand(2, -1, -1), rows, S, (L, B, H))
    for r in range(2):
        for head in range(H):
            record = records[layer, head]
            block, page, slot = reference.slots_of(cache.arena, rows[r], record)
            job = r * H + head
            slots = torch.arange(len(slot))
            expected = ((page // H) * B + block) * H + page % H
            assert torch.equal(folded.pages[job][slots // S].long(), expected)
            assert torch.equal(folded.metadata[job][slots // S], block * L * H + page)
            used = -(-len(slot) // S)
            assert not folded.pages[job][used:].any() and not folded.metadata[job][used:].any()

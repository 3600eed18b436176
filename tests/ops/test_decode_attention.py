import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from tests.ops.cases import (
    DTYPES,
    POOLS,
    SHAPES,
    Cache,
    HeadPlan,
    generator,
    make_cache,
    make_records,
    random_blocks,
    random_tokens,
    relative_error,
    write_stream,
)

L, H, LAYER = 2, 2, 1


class Step:
    """R requests of a step, whose heads of LAYER have the given lengths, H per request."""

    def __init__(
        self,
        lengths: list[int],
        dtype: torch.dtype,
        S: int,
        D: int,
        G: int,
        rule: StoreRule = StoreRule.APPEND,
        fixed: int | None = None,
        stock: int = 0,
        read_only: int = 0,
    ) -> None:
        rng = generator(lengths, dtype, S, D, G, rule)
        R = len(lengths) // H
        plans = [
            [HeadPlan(1)] * H + [HeadPlan(n, rule, fixed) for n in lengths[r * H : (r + 1) * H]]
            for r in range(R)
        ]
        laid_out = [make_records(p, L, H, S, stock, read_only) for p in plans]
        blocks = max(-(-pages // (L * H)) for _, pages in laid_out)
        num_blocks = R * blocks + 2
        self.cache: Cache = make_cache(dtype, L, num_blocks, H, S, D)
        self.rows = random_blocks(R * blocks, num_blocks, rng).view(R, blocks)
        self.lanes = torch.randperm(R + 2, generator=rng)[:R].int()
        self.heads = torch.zeros(R + 2, L, H, len(HeadField), dtype=torch.int32)
        self.token_index = torch.randperm(R + 1, generator=rng)[:R]
        self.query = torch.randn(R + 1, H * G, D, generator=rng).to(dtype)
        self.scale = D**-0.5
        self.keys: list[Tensor] = []
        self.vals: list[Tensor] = []
        for r, (records, _) in enumerate(laid_out):
            self.heads[self.lanes[r]] = records
            for head in range(H):
                key, value = random_tokens(lengths[r * H + head], D, dtype, rng)
                write_stream(self.cache, self.rows[r], records[LAYER, head], key, value)
                self.keys.append(key)
                self.vals.append(value)

    def run(self, pool: str = "mean", values: Tensor | None = None, op: object = None) -> Tensor:
        output = torch.zeros_like(self.query)
        (op or ops.decode_attention)(  # type: ignore[operator]
            self.query,
            self.token_index,
            self.lanes,
            self.rows,
            LAYER,
            self.scale,
            pool,
            self.cache.arena,
            self.heads,
            self.cache.values if values is None else values,
            output,
        )
        return output

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The output of PyTorch's attention over each head's tokens."""
        output = torch.zeros_like(self.query, dtype=dtype)
        group = self.query.shape[1] // H
        for i, (key, value) in enumerate(zip(self.keys, self.vals, strict=True)):
            token, head = self.token_index[i // H], i % H
            q_heads = slice(head * group, (head + 1) * group)
            output[token, q_heads] = scaled_dot_product_attention(
                self.query[None, token, q_heads].to(dtype),
                key[None].to(dtype),
                value[None].to(dtype),
            )[0]
        return output


def ragged(S: int) -> list[int]:
    return [1, S - 1, S, S + 1, 7 * S + 5, 333]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_error_is_within_twice_that_of_torch(
    isa: str, dtype: torch.dtype, S: int, D: int, G: int
) -> None:
    step = Step(ragged(S), dtype, S, D, G)
    output, exact = step.run(), step.dense(torch.float64)
    assert relative_error(output, exact) <= 2 * relative_error(step.dense(dtype), exact)
    assert not step.cache.values.any()


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rule", list(StoreRule))
def test_equals_reference_with_values(isa: str, pool: str, rule: StoreRule) -> None:
    step = Step(ragged(32), torch.float32, 32, 64, 3, rule)
    values = torch.rand(step.cache.values.shape, generator=generator(pool))
    values[:, :, ::5] = float("inf")
    expected = values.clone()
    output = step.run(pool, values)
    expected_output = step.run(pool, expected, reference.decode_attention)
    torch.testing.assert_close(output, expected_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert rule.values_tokens or torch.equal(values, expected)


@pytest.mark.parametrize(("stock", "read_only"), [(1, 0), (2, 1), (3, 3)])
@pytest.mark.parametrize("lengths", [[97, 128, 129, 333, 100, 160], [1023, 1024, 1025, 2500]])
def test_stock_pages_are_read_and_only_those_that_may_be_written_are_valued(
    isa: str, stock: int, read_only: int, lengths: list[int]
) -> None:
    of = dict(rule=StoreRule.BY_ENERGY, stock=stock, read_only=read_only)
    step = Step(lengths, torch.float32, 32, 64, 3, **of)  # type: ignore[arg-type]
    values = torch.zeros_like(step.cache.values)
    expected = values.clone()
    output = step.run("mean", values)
    step.run("mean", expected, reference.decode_attention)
    exact = step.dense(torch.float64)
    assert relative_error(output, exact) <= 2 * relative_error(step.dense(torch.float32), exact)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    for r in range(len(lengths) // H):
        assert not values[step.rows[r, :read_only].long()].any()
        if read_only < stock:
            assert values[step.rows[r, read_only].long(), LAYER * H :].all()


@pytest.mark.parametrize("rule", [StoreRule.APPEND, StoreRule.BY_VALUE, StoreRule.BY_ENERGY])
def test_long_heads_are_split_and_merged(isa: str, rule: StoreRule) -> None:
    step = Step([1023, 1024, 1025, 2500], torch.float32, 32, 64, 3, rule)
    exact = step.dense(torch.float64)
    torch_error = relative_error(step.dense(torch.float32), exact)
    assert relative_error(step.run("max"), exact) <= 2 * torch_error
    for i, key in enumerate(step.keys):
        r, head = divmod(i, H)
        record = step.heads[step.lanes[r], LAYER, head]
        where = reference.slots_of(step.cache.arena, step.rows[r], record)
        q = step.query[step.token_index[r], head * 3 : (head + 1) * 3]
        probability = (q @ key.T * step.scale).softmax(-1).amax(0)
        gained = {StoreRule.BY_VALUE: probability, StoreRule.BY_ENERGY: probability.square()}
        expected = gained.get(rule, torch.zeros_like(probability))
        torch.testing.assert_close(step.cache.values[where], expected, rtol=2e-5, atol=1e-8)


def test_growth_pages_are_read(isa: str) -> None:
    step = Step([100, 40, 65, 333], torch.bfloat16, 32, 128, 2, fixed=1)
    exact = step.dense(torch.float64)
    torch_error = relative_error(step.dense(torch.bfloat16), exact)
    assert relative_error(step.run(), exact) <= 2 * torch_error


def test_large_scores_do_not_overflow(isa: str) -> None:
    step = Step([200, 70], torch.float32, 32, 64, 3)
    step.scale = 100.0
    expected = step.run(op=reference.decode_attention)
    torch.testing.assert_close(step.run(), expected, rtol=1e-3, atol=1e-4)


def test_requests_and_threads_do_not_change_the_bits(isa: str) -> None:
    step = Step([300, 1, 1500, 64, 33, 2100], torch.bfloat16, 32, 64, 3)
    whole = step.run()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(step.run(), whole)
    finally:
        torch.set_num_threads(threads)
    step.token_index, step.lanes, step.rows = step.token_index[1:2], step.lanes[1:2], step.rows[1:2]
    token = step.token_index[0]
    assert torch.equal(step.run()[token], whole[token])


@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equals_the_folded_stock_kernel(isa: str, dtype: torch.dtype, G: int) -> None:
    """vLLM's own kernel, with (request, head) as its batch and one KV head."""
    stock = pytest.importorskip("vllm._custom_ops")
    S, D = 32, 64
    step = Step([1, 31, 32, 33, 500, 1100], dtype, S, D, G)
    step.cache.arena = step.cache.arena.nan_to_num(0.0)
    B = step.cache.arena.shape[1]
    # [L, B, H, 2*S, D] contiguous, so page (l, b, h) is row (l * B + b) * H + h of the fold.
    fold = step.cache.arena.contiguous().view(L * B * H, 1, 2 * S, D)
    key_cache, value_cache = fold.chunk(2, dim=2)
    lengths = torch.tensor([k.shape[0] for k in step.keys], dtype=torch.int32)
    table = torch.zeros(len(lengths), -(-1100 // S), dtype=torch.int32)
    for i, length in enumerate(lengths.tolist()):
        r, head = divmod(i, H)
        record = step.heads[step.lanes[r], LAYER, head]
        for p in range(-(-length // S)):
            b, page, _ = reference.slot_of(step.cache.arena, step.rows[r], record, p * S)
            table[i, p] = (page // H * B + b) * H + page % H
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32)
    query = step.query[step.token_index].view(len(lengths), G, D).contiguous()
    expected = torch.empty_like(query)
    metadata = stock.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=G,
        num_kv_heads=1,
        head_dim=D,
        seq_lens=lengths,
        dtype=dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa="vec",
        enable_kv_split=True,
        dynamic_causal=None,
        kv_cache_dtype="auto",
    )
    stock.cpu_attention_with_kv_cache(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        output=expected,
        query_start_loc=starts,
        seq_lens=lengths,
        scale=step.scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=table,
        softcap=0,
        scheduler_metadata=metadata,
        s_aux=None,
        dynamic_causal=None,
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    actual = step.run()[step.token_index].view_as(expected)
    assert relative_error(actual, expected.double()) < (1e-6 if dtype == torch.float32 else 3e-3)


def test_bad_arguments_are_named() -> None:
    step = Step([1, 1], torch.float32, 32, 32, 1)
    with pytest.raises(ValueError, match="pool must be one of mean, max, min, got 'sum'"):
        step.run("sum")
    with pytest.raises(ValueError, match=r"values must have shape \[.*\], got \[1, 4, 32\]"):
        step.run(values=torch.zeros(1, 4, 32))
    step.heads[step.lanes[0], LAYER, 1, HeadField.LENGTH] = 0
    with pytest.raises(ValueError, match=r"LENGTH of at least 1, heads\[\d, 1, 1\] has 0"):
        step.run()
    step.lanes = step.lanes.long()
    with pytest.raises(ValueError, match="lanes must be int32, got int64"):
        step.run()

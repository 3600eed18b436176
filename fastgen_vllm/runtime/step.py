"""What FastGen does in one step's attention layers."""

from typing import NamedTuple

from torch import Tensor

from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.runtime.replayed import Waiting


class ObservedRows(NamedTuple):
    """Observed queries of one request in this step."""

    attention: Tensor  # [L, H, N] float32, accumulated
    energy: Tensor  # [L, H, N] float32, accumulated
    begin: int  # first token of the step's batch
    end: int
    first_position: int
    block_row: Tensor  # [blocks] int32
    observation: Observation
    waiting: Waiting  # queries that wait to be replayed


class DecodeRows(NamedTuple):
    """Compacted requests of this step, one query each."""

    rows: Tensor  # [R] int64, rows of the step's batch
    token_index: Tensor  # [R] int64, row of query, key and value
    lanes: Tensor  # [R] int32
    block_rows: Tensor  # [R, M] int32
    token_position: Tensor  # [R] int32
    token_class: Tensor  # [R] int32


class StepWork(NamedTuple):
    """Rows of the step's batch by what is done with them."""

    observed: list[ObservedRows]
    decode: DecodeRows | None
    only_decode: bool  # no stock rows: stock attention can be skipped

"""The twins of the structs of csrc/include/fastgen/kernels.h and of csrc/cuda/ops.h."""

import ctypes

Pointer = ctypes.c_void_p
Int = ctypes.c_int32
Long = ctypes.c_int64


class PagePool(ctypes.Structure):
    _fields_ = (
        ("arena", Pointer),
        ("dtype", Int),
        ("element_size", Int),
        ("layer_stride", Long),
        ("block_stride", Long),
        ("head_stride", Long),
        ("slot_stride", Long),
        ("num_blocks", Int),
        ("num_layers", Int),
        ("num_heads", Int),
        ("page_slots", Int),
        ("head_size", Int),
        ("in_pairs", ctypes.c_bool),
    )


class BlockRow(ctypes.Structure):
    _fields_ = (("blocks", Pointer), ("num_blocks", Int))


class StepRequests(ctypes.Structure):
    _fields_ = (
        ("token_index", Pointer),
        ("lanes", Pointer),
        ("block_rows", Pointer),
        ("row_stride", Long),
        ("row_blocks", Int),
        ("num_requests", Int),
        ("num_tokens", Int),
        ("num_lanes", Int),
        ("layer", Int),
        ("heads", Pointer),
    )


class StoreCall(ctypes.Structure):
    _fields_ = (
        ("pool", PagePool),
        ("step", StepRequests),
        ("key", Pointer),
        ("key_token_stride", Long),
        ("key_head_stride", Long),
        ("value", Pointer),
        ("value_token_stride", Long),
        ("value_head_stride", Long),
        ("token_position", Pointer),
        ("token_class", Pointer),
        ("positions", Pointer),
        ("values", Pointer),
    )


class CompactCall(ctypes.Structure):
    _fields_ = (
        ("pool", PagePool),
        ("saved", PagePool),
        ("old_row", BlockRow),
        ("old_heads", Pointer),
        ("new_row", BlockRow),
        ("num_kept", Int),
        ("kept", Pointer),
        ("kept_position", Pointer),
        ("kept_start", Pointer),
        ("kept_value", Pointer),
        ("heads", Pointer),
        ("positions", Pointer),
        ("values", Pointer),
    )


class ValueNormCall(ctypes.Structure):
    _fields_ = (
        ("pool", PagePool),
        ("block_row", BlockRow),
        ("heads", Pointer),
        ("num_tokens", Int),
        ("norm", Pointer),
    )


class Turn(ctypes.Structure):
    _fields_ = (("angles", Pointer), ("pairs", Int), ("interleaved", ctypes.c_bool))


class ReplayScratch(ctypes.Structure):
    _fields_ = (("softmax_rows", Pointer), ("turned", Pointer), ("sample", Pointer))


#: What calls have in common in which a prompt's queries meet its keys.
_QUERIES = (
    ("pool", PagePool),
    ("query", Pointer),
    ("query_token_stride", Long),
    ("query_head_stride", Long),
    ("num_queries", Int),
    ("group_size", Int),
    ("first_position", Int),
    ("layer", Int),
    ("block_row", BlockRow),
    ("heads", Pointer),
    ("scale", ctypes.c_float),
    ("pooling", Int),
    ("turn", Turn),
)


class AttentionMassCall(ctypes.Structure):
    _fields_ = (
        *_QUERIES,
        ("is_replay", ctypes.c_bool),
        ("block_queries", Int),  # the CPU's
        ("score_stride", Long),  # the CPU's
        ("mass", Pointer),
        ("mass_stride", Long),
        ("energy", Pointer),
        ("energy_stride", Long),
        ("softmax_rows", Pointer),
    )


class ReplayedMassCall(ctypes.Structure):
    _fields_ = (*AttentionMassCall._fields_[:-1], ("scratch", ReplayScratch))


class ReplayCall(ctypes.Structure):
    _fields_ = (
        *_QUERIES,
        ("sample_step", Int),
        ("sample_bias", ctypes.c_float),
        ("sample_tiles", Int),  # the CPU's
        ("sample", Pointer),  # the CPU's
        ("parts", Pointer),  # the CPU's
        ("values", Pointer),
        ("scratch", ReplayScratch),
    )


class DecodeCall(ctypes.Structure):
    _fields_ = (
        ("pool", PagePool),
        ("step", StepRequests),
        ("query", Pointer),
        ("query_token_stride", Long),
        ("query_head_stride", Long),
        ("output", Pointer),
        ("output_token_stride", Long),
        ("output_head_stride", Long),
        ("group_size", Int),
        ("scale", ctypes.c_float),
        ("pooling", Int),
        ("values", Pointer),
        ("part_pages", Int),  # the CPU's
        ("first_page", Pointer),
        ("states", Pointer),
        ("scores", Pointer),
        ("scored_pages", Int),
        ("num_blocks", Int),
    )


CALLS: dict[str, type[ctypes.Structure]] = {
    "store": StoreCall,
    "compact": CompactCall,
    "value_norm": ValueNormCall,
    "attention_mass": AttentionMassCall,
    "decode_attention": DecodeCall,
    "replay": ReplayCall,
    "replayed_mass": ReplayedMassCall,
}

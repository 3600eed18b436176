"""What is copied when a request is compacted."""

from fastgen_vllm.compaction.copy import CompactionCopy, copy_for

__all__ = ["CompactionCopy", "copy_for"]

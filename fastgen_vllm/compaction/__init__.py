"""What is copied when a request is compacted."""

from fastgen_vllm.compaction.copy import CompactionCopy, PreparedCompaction

__all__ = ["CompactionCopy", "PreparedCompaction"]

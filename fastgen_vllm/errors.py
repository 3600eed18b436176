"""Errors of other people's code, in messages of ours. Imports nothing that may be missing."""


def one_line(error: Exception) -> str:
    """Kind and message of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split())

"""Files that are fetched once, checked, and kept in the user's cache."""

import hashlib
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from fastgen_vllm.models.embedded import default_cache_dir

_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        name: file name in the cache.
        urls: where it can be had, tried in order.
        instead: what a user without network can do.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    instead: str


def fetch(download: Download) -> bytes:
    """Return the file's content, from the cache if it is there.

    Raises:
        ValueError: it cannot be had from any address; the message says why and what to do.
    """
    path = default_cache_dir() / download.name
    if path.is_file():
        cached = path.read_bytes()
        if _sha256(cached) == download.sha256:
            return cached
    problems = []
    for url in download.urls:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
                content: bytes = answer.read()
        except (OSError, HTTPException) as error:
            problems.append(f"{url}: {error}")
            continue
        if _sha256(content) == download.sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
            return content
        problems.append(f"{url}: its SHA-256 is {_sha256(content)}, not {download.sha256}")
    raise ValueError(f"cannot fetch {download.name} ({'; '.join(problems)}): {download.instead}.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Real text of several kinds, cut into passages by a seed."""

import io
import lzma
import random
import re
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from fastgen_vllm.evaluation.download import Download, fetch

#: "An Anarchist FAQ" as Debian ships it: 1.6 million tokens of coherent prose (GPL-2).
PROSE = Download(
    name="anarchism_15.3-3_all.deb",
    urls=(
        "https://deb.debian.org/debian/pool/main/a/anarchism/anarchism_15.3-3_all.deb",
        "https://snapshot.debian.org/archive/debian/20250520T000000Z/pool/main/a/anarchism/"
        "anarchism_15.3-3_all.deb",
    ),
    sha256="cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
    instead="give texts of your own with --texts KIND=FILE",
)
#: Modules of the standard library with long, varied source.
_CODE = ("argparse", "inspect", "mailbox", "pickle", "subprocess", "tarfile", "typing", "zipfile")

#: More than any text has, so that a piece of this length is long enough.
_CHARACTERS_PER_TOKEN = 12


@dataclass(frozen=True)
class Corpus:
    """Documents of one kind."""

    kind: str
    documents: tuple[str, ...]


class Forced(NamedTuple):
    """Tokens to follow a prompt, of which the last ``num_scored`` are of interest."""

    tokens: list[int]
    num_scored: int

    @property
    def scored(self) -> list[int]:
        """The tokens of interest."""
        return self.tokens[-self.num_scored :]


@dataclass(frozen=True)
class Passage:
    """A prompt and the text that follows it."""

    name: str
    kind: str
    prompt: list[int]  # token ids
    continuation: list[int]  # token ids

    @property
    def forced(self) -> Forced:
        """The whole continuation."""
        return Forced(self.continuation, len(self.continuation))


def built_in_corpora() -> tuple[Corpus, ...]:
    """Prose, a reference manual and Python source.

    Raises:
        ValueError: the prose cannot be had; the message says what to do.
    """
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    code = tuple((library / f"{module}.py").read_text("utf-8") for module in _CODE)
    return (
        Corpus("prose", tuple(_debian_html(fetch(PROSE)))),
        Corpus("manual", ("\n\n".join(topics.values()),)),
        Corpus("code", code),
    )


def corpora_from(arguments: Sequence[str]) -> tuple[Corpus, ...]:
    """Read the user's texts.

    Args:
        arguments: ``KIND=PATH`` each; a path is a UTF-8 text file or a directory of ``.txt``.

    Raises:
        ValueError: names the argument that is malformed, missing, empty or not text.
    """
    documents: dict[str, list[str]] = {}
    for argument in arguments:
        kind, separator, path = argument.partition("=")
        if not separator or not kind or not path:
            raise ValueError(f"--texts {argument}: give KIND=FILE, such as prose=book.txt.")
        documents.setdefault(kind, []).extend(_read(argument, Path(path)))
    return tuple(Corpus(kind, tuple(texts)) for kind, texts in documents.items())


def cut_passages(
    corpora: Sequence[Corpus],
    tokenizer: Any,
    lengths: Sequence[int],
    continuation: int,
    per_kind: int,
    seed: int,
) -> list[Passage]:
    """Cut ``per_kind`` passages of each kind and prompt length, where the seed says.

    Args:
        tokenizer: a Hugging Face tokenizer.
        lengths: prompt lengths, in tokens.
        continuation: tokens after the prompt.

    Raises:
        ValueError: no document of a kind is long enough.
    """
    passages = []
    for corpus in corpora:
        for length in lengths:
            dice = random.Random(f"{seed} {corpus.kind} {length}")
            for number in range(per_kind):
                tokens = cut(corpus.documents, tokenizer, length + continuation, dice, corpus.kind)
                name = f"{corpus.kind}-{length}-{number}"
                passages.append(Passage(name, corpus.kind, tokens[:length], tokens[length:]))
    return passages


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def cut(
    documents: Sequence[str], tokenizer: Any, length: int, dice: random.Random, kind: str
) -> list[int]:
    """Cut ``length`` consecutive tokens at a random place; long documents are likelier.

    Only the surroundings of the place are tokenized.

    Raises:
        ValueError: no document is long enough.
    """
    left = list(documents)
    while left:
        chosen = dice.choices(range(len(left)), weights=[len(text) for text in left])[0]
        text = left.pop(chosen)
        window = _CHARACTERS_PER_TOKEN * length
        start = dice.randrange(max(0, len(text) - window) + 1)
        tokens = tokenize(tokenizer, text[start : start + window])
        if len(tokens) >= length:
            first = dice.randrange(len(tokens) - length + 1)
            return tokens[first : first + length]
    raise ValueError(
        f"texts of kind {kind!r}: none has {length} tokens. "
        "Give longer ones with --texts, or smaller --lengths."
    )


def _read(argument: str, path: Path) -> Iterator[str]:
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"--texts {argument}: the directory holds no .txt file.")
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--texts {argument}: cannot read {file} as text: {error}") from None
        if not text.strip():
            raise ValueError(f"--texts {argument}: {file} is empty.")
        yield text


def _debian_html(package: bytes) -> Iterator[str]:
    """Yield the text of every HTML section in a Debian package, in the order of their names."""
    with tarfile.open(fileobj=io.BytesIO(_data_of_debian_package(package))) as tar:
        members = [m for m in tar if re.search(r"/html/sec\w+\.html$", m.name)]
        for member in sorted(members, key=lambda m: m.name):
            file = tar.extractfile(member)
            if file is not None:
                yield html_text(file.read().decode("utf-8", "replace"))


def _data_of_debian_package(package: bytes) -> bytes:
    """Return the tar archive with a package's files: a member of an `ar` archive."""
    offset = len(b"!<arch>\n")
    while offset < len(package):
        name = package[offset : offset + 16].decode().strip()
        size = int(package[offset + 48 : offset + 58])
        offset += 60
        if name.startswith("data.tar.xz"):
            return lzma.decompress(package[offset : offset + size])
        offset += size + size % 2
    raise ValueError(f"{PROSE.name} holds no data.tar.xz")


def html_text(html: str) -> str:
    """Return the readable text of a page: paragraphs apart, lines joined."""
    reader = _TextReader()
    reader.feed(html)
    text = re.sub(r"[ \t\r\f\v]*\n[ \t\r\f\v]*", "\n", "".join(reader.parts))
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    return re.sub(r"\n{2,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


class _TextReader(HTMLParser):
    _SILENT = frozenset({"script", "style", "title"})
    _BREAKS = frozenset({"p", "br", "div", "li", "h1", "h2", "h3", "h4", "tr"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self._SILENT
        if tag in self._BREAKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self._SILENT

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)

"""Texts of the evaluation: where they come from, how they are cut, and what is refused."""

import hashlib
import io
import lzma
import random
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fastgen_vllm.evaluation import texts
from fastgen_vllm.evaluation.download import Download, fetch
from fastgen_vllm.evaluation.texts import (
    Corpus,
    built_in_corpora,
    corpora_from,
    cut,
    cut_passages,
    html_text,
    tokenize,
)
from tests.evaluation.tiny import CODE, MANUAL, tiny_tokenizer

MANUALS = (Corpus("manual", (MANUAL,)), Corpus("code", (CODE,)))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


# -- the user's texts ------------------------------------------------------------------


def test_texts_are_read_by_kind(tmp_path: Path) -> None:
    for name, content in {"b.txt": "second", "a.txt": "first", "c.md": "not a text"}.items():
        (tmp_path / name).write_text(content)
    extra = tmp_path / "extra.py"
    extra.write_text("größer = 1\n", "utf-8")
    arguments = [f"prose={tmp_path}", f"code={extra}", f"prose={tmp_path / 'c.md'}"]
    assert corpora_from(arguments) == (
        Corpus("prose", ("first", "second", "not a text")),
        Corpus("code", ("größer = 1\n",)),
    )


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "a=b.txt").write_text("text")
    assert corpora_from([f"prose={tmp_path / 'a=b.txt'}"]) == (Corpus("prose", ("text",)),)


@pytest.mark.parametrize("argument", ["book.txt", "=book.txt", "prose=", ""])
def test_malformed_arguments_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"^--texts {argument}: give KIND=FILE"):
        corpora_from([argument])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.txt", None, "cannot read"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("binary.txt", b"\x7fELF\xff\xfe\x00", "cannot read"),
        ("latin.txt", "größer".encode("latin-1"), "cannot read"),
    ],
)
def test_unreadable_files_are_named(
    name: str, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as refusal:
        corpora_from([f"prose={path}"])
    assert str(refusal.value).startswith(f"--texts prose={path}: ")


def test_a_directory_needs_texts(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(ValueError, match=r"holds no \.txt file"):
        corpora_from([f"prose={tmp_path}"])


def test_an_empty_file_in_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").touch()
    with pytest.raises(ValueError, match=r"b\.txt is empty"):
        corpora_from([f"prose={tmp_path}"])


# -- passages ----------------------------------------------------------------------------


def test_passages_have_the_asked_lengths(tokenizer: Any) -> None:
    passages = cut_passages(MANUALS, tokenizer, (256, 300), 17, 3, seed=0)
    expected = [
        (f"{kind}-{length}-{number}", kind, length, 17)
        for kind in ("manual", "code")
        for length in (256, 300)
        for number in range(3)
    ]
    found = [(p.name, p.kind, len(p.prompt), len(p.continuation)) for p in passages]
    assert found == expected
    assert len({tuple(p.prompt) for p in passages}) == len(passages), "one passage comes twice"


def test_passages_are_consecutive_text(tokenizer: Any) -> None:
    for passage in cut_passages(MANUALS, tokenizer, (256,), 40, 3, seed=1):
        text = tokenizer.decode(passage.prompt + passage.continuation)
        source = MANUAL if passage.kind == "manual" else CODE
        # A cut may go through a character of several bytes.
        assert text.strip("\N{REPLACEMENT CHARACTER}") in source


def test_passages_hold_no_special_tokens(tokenizer: Any) -> None:
    (passage,) = cut_passages([MANUALS[0]], tokenizer, (1000,), 2, 1, seed=0)
    assert not set(passage.prompt) & set(tokenizer.all_special_ids)


def test_a_seed_decides_the_passages(tokenizer: Any) -> None:
    def passages(seed: int, lengths: tuple[int, ...] = (256, 300), count: int = 2) -> Any:
        return cut_passages(MANUALS, tokenizer, lengths, 20, count, seed)

    assert passages(0) == passages(0)
    first, other = passages(0), passages(1)
    assert [p.name for p in first] == [p.name for p in other]
    assert all(p.prompt != q.prompt for p, q in zip(first, other, strict=True))
    # More passages, or other lengths, leave the rest as it is.
    more = {p.name: p for p in passages(0, count=3)}
    assert all(more[p.name] == p for p in first)
    assert {p.name: p for p in passages(0, lengths=(300,))}.items() <= more.items()


def test_too_short_texts_are_refused(tokenizer: Any) -> None:
    corpora = [Corpus("notes", ("A short text.", "Another."))]
    with pytest.raises(ValueError, match=r"kind 'notes': none has 260 tokens.*--lengths"):
        cut_passages(corpora, tokenizer, (256,), 4, 1, seed=0)


def test_short_documents_are_passed_over(tokenizer: Any) -> None:
    documents = ["Too short."] * 50 + [MANUAL[:3000]]
    for seed in range(20):
        tokens = cut(documents, tokenizer, 300, random.Random(seed), "notes")
        assert len(tokens) == 300


#: Tokens that are all different, so that a cut tells where it comes from.
WORDS = [chr(code) for code in range(ord("!"), ord("!") + 60)]


class Characters:
    """A tokenizer that makes a token of every character."""

    def __call__(self, text: str, **_options: Any) -> Any:
        return SimpleNamespace(input_ids=[WORDS.index(character) for character in text])


def starts(length: int, count: int) -> Counter[int]:
    """Where cuts of a document of 60 one-character tokens begin."""
    tokenizer = Characters()
    text = "".join(WORDS)
    found = [cut([text], tokenizer, length, random.Random(seed), "x") for seed in range(count)]
    assert all(piece == list(range(piece[0], piece[0] + length)) for piece in found)
    return Counter(piece[0] for piece in found)


def test_a_document_of_the_asked_length_is_taken_whole() -> None:
    assert set(starts(len(WORDS), 5)) == {0}


def test_cuts_begin_everywhere_up_to_the_end() -> None:
    """First and last place included, none much likelier than another."""
    counts = starts(10, 2000)
    assert set(counts) == set(range(51))
    assert max(counts.values()) < 3 * 2000 / 51


def test_cuts_of_long_documents_reach_both_ends() -> None:
    """Only a window of the text is tokenized; the ends are rarer than the middle."""
    counts = starts(2, 3000)
    assert set(counts) == set(range(59))


def test_long_documents_are_likelier(tokenizer: Any) -> None:
    documents = [MANUAL[:4000], MANUAL[100_000:136_000]]
    found = 0
    for seed in range(200):
        tokens = cut(documents, tokenizer, 50, random.Random(seed), "x")
        found += tokenizer.decode(tokens[5:-5]) in documents[1]
    assert 160 <= found <= 197  # 180 expected


# -- the built-in texts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one\ntwo</p><p>three</p>", "one two\n\nthree"),
        ("a<br>b<br/>c", "a\n\nb\n\nc"),
        ("<title>no</title><h1>Head</h1><div>body</div>", "Head\n\nbody"),
        ("x<script>var y = '<p>';</script><style>p {}</style>z", "xz"),
        (
            "<p>&lt;tag&gt; &amp; &quot;caf&eacute;&#8217;s&quot;</p>",
            '<tag> & "café\N{RIGHT SINGLE QUOTATION MARK}s"',
        ),
        ("<p>much   white \t space</p>\n\n\n\n<p>\n  next\n</p>", "much white space\n\nnext"),
        ("<b>bold</b> and <i>italic</i>", "bold and italic"),
        ("<ul><li>one<li>two</ul>", "one\n\ntwo"),
        ("", ""),
    ],
)
def test_html_becomes_paragraphs(html: str, text: str) -> None:
    assert html_text(html) == text


def debian_package(files: dict[str, str]) -> bytes:
    """An `ar` archive as dpkg makes it, with members of odd length before the files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": lzma.compress(stream.getvalue()),
    }
    archive = b"!<arch>\n"
    for name, data in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        archive += head.encode() + data + b"\n" * (len(data) % 2)
    return archive


FILES = {
    "./usr/share/doc/anarchism/html/secB1.html": "<h1>B.1</h1><p>later</p>",
    "./usr/share/doc/anarchism/html/secA2.html": "<p>zwei\nfünf</p>",
    "./usr/share/doc/anarchism/html/index.html": "<p>contents</p>",
    "./usr/share/doc/anarchism/copyright": "not a section",
    "./usr/share/doc/anarchism/html/secA1.html": "<p>first</p>",
}


def test_sections_of_a_debian_package_are_read_in_order() -> None:
    package = debian_package(FILES)
    assert list(texts._debian_html(package)) == ["first", "zwei fünf", "B.1\n\nlater"]


def test_a_package_without_files_is_refused() -> None:
    package = debian_package({}).replace(b"data.tar.xz", b"data.tar.gz")
    with pytest.raises(ValueError, match=r"holds no data\.tar\.xz"):
        list(texts._debian_html(package))


# -- downloads -----------------------------------------------------------------------------

CONTENT = debian_package(FILES)


class Site(BaseHTTPRequestHandler):
    """Serves one file whole, one cut off, and one that is another file."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        match self.path:
            case "/cut":
                self.wfile.write(CONTENT[:100])
            case "/other":
                self.wfile.write(CONTENT[::-1])
            case _:
                self.wfile.write(CONTENT)

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    Site.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def file(site: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Download:
    """A file on the local site; the user's cache is empty, and not even there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return Download("book.deb", urls(site, "/file"), sha256, "bring your own book")


def urls(site: ThreadingHTTPServer, *paths: str) -> tuple[str, ...]:
    return tuple(f"http://127.0.0.1:{site.server_port}{path}" for path in paths)


def cache(tmp_path: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tmp_path / "cache")): path.read_bytes()
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file()
    }


def test_a_file_is_fetched_once(file: Download, tmp_path: Path) -> None:
    assert fetch(file) == CONTENT
    assert cache(tmp_path) == {"fastgen_vllm/book.deb": CONTENT}
    assert fetch(file) == CONTENT
    assert Site.asked == ["/file"]


def test_a_cached_file_needs_no_network(file: Download) -> None:
    fetch(file)
    assert fetch(replace(file, urls=())) == CONTENT


def test_a_damaged_cache_is_fetched_again(file: Download, tmp_path: Path) -> None:
    fetch(file)
    (tmp_path / "cache" / "fastgen_vllm" / "book.deb").write_bytes(CONTENT[:50])
    assert fetch(file) == CONTENT
    assert cache(tmp_path) == {"fastgen_vllm/book.deb": CONTENT}
    assert Site.asked == ["/file", "/file"]


def test_other_content_is_refused(
    site: ThreadingHTTPServer, file: Download, tmp_path: Path
) -> None:
    (url,) = urls(site, "/other")
    with pytest.raises(ValueError) as refusal:
        fetch(replace(file, urls=(url,)))
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert str(refusal.value) == (
        f"cannot fetch book.deb ({url}: its SHA-256 is {found}, not {file.sha256}): "
        "bring your own book."
    )
    assert cache(tmp_path) == {}


def test_the_next_address_is_tried(site: ThreadingHTTPServer, file: Download) -> None:
    assert fetch(replace(file, urls=urls(site, "/missing", "/other", "/file"))) == CONTENT
    assert Site.asked == ["/missing", "/other", "/file"]


def test_every_address_is_told(site: ThreadingHTTPServer, file: Download, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9/file"
    missing, other = urls(site, "/missing", "/other")
    with pytest.raises(ValueError) as refusal:
        fetch(replace(file, urls=(missing, closed, other)))
    message = str(refusal.value)
    assert message.startswith("cannot fetch book.deb (")
    assert f"{missing}: HTTP Error 404" in message
    assert f"{closed}: " in message and "refused" in message
    assert f"{other}: its SHA-256 is " in message
    assert message.endswith(": bring your own book.")
    assert cache(tmp_path) == {}


def test_a_connection_that_breaks_is_one_of_the_problems(
    site: ThreadingHTTPServer, file: Download
) -> None:
    assert fetch(replace(file, urls=urls(site, "/cut", "/file"))) == CONTENT
    with pytest.raises(ValueError, match="bring your own book"):
        fetch(replace(file, name="other.deb", urls=urls(site, "/cut")))


def test_built_in_texts_are_of_three_kinds(file: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PROSE", file)
    prose, manual, code = built_in_corpora()
    assert (prose.kind, manual.kind, code.kind) == ("prose", "manual", "code")
    assert prose.documents == ("first", "zwei fünf", "B.1\n\nlater")
    assert len(manual.documents[0]) > 400_000
    assert all("def " in document for document in code.documents)


def test_tokens_are_without_special_ones(tokenizer: Any) -> None:
    assert tokenizer.decode(tokenize(tokenizer, "plain text")) == "plain text"

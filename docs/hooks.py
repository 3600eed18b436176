"""What mkdocs does beside its own: references made from the code, without importing vLLM.

A line ``<!-- help: serve -->`` becomes the help page of a command, ``<!-- fields: package.module
Model -->`` a table of a pydantic model's fields.
"""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_MARK = re.compile(r"^<!-- (help|fields): (.+?) -->$", re.MULTILINE)
_COMMENT = re.compile(r"  # (?!type:|noqa)(.+)$")
_LINK = re.compile(r"\[([^]]+)\]\((\.\./[^)#]+)\)")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
_DOUBLE_COLON = re.compile(r"::$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Mkdocs' hook: fill in the marks of a page, and leave links to the source tree out."""

    def unlink(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        is_source = target.exists() and not target.is_relative_to(Path(__file__).parent)
        return link[1] if is_source else link[0]

    folder = Path(page.file.abs_src_path).parent
    return _MARK.sub(_fill_in, _LINK.sub(unlink, markdown))


class Docstrings(griffe.Extension):
    """Makes Markdown of roles and double colons, and docstrings of comments behind fields."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _DOUBLE_COLON.sub(":", text)
        elif obj.is_attribute and (comment := _COMMENT.search(obj.source)):
            text = re.sub(r"(\[[^]]*\])", r"`\1`", comment[1])
            obj.docstring = griffe.Docstring(text[0].upper() + text[1:] + ".", parent=obj)


def _fill_in(mark: re.Match[str]) -> str:
    if mark[1] == "help":
        return f"```text\n{_help_of(mark[2])}```"
    module, name = mark[2].split()
    return "\n".join(_table_of(getattr(importlib.import_module(module), name)))


def _help_of(command: str) -> str:
    from fastgen_vllm.evaluation import cli as evaluation
    from fastgen_vllm.server import parsers

    made = {
        "fastgen-vllm": lambda: parsers.main_parser("0"),
        "serve": parsers.serve_help_parser,
        "eval": evaluation.parser,
    }
    os.environ["COLUMNS"] = "100"  # argparse would take the terminal's
    return made[command]().format_help()


def _table_of(model: type[BaseModel]) -> Iterator[str]:
    """A table of the fields, those of nested options below the field that holds them."""
    fields = list(_fields(model))
    has_defaults = any(not field.is_required() for _, field in fields)
    yield "| name | type |" + (" default |" if has_defaults else "") + " meaning |"
    yield "|---|---|" + ("---|" if has_defaults else "") + "---|"
    for name, field in fields:
        default = f" {_default(field)} |" if has_defaults else ""
        yield f"| `{name}` | `{_type(field.annotation)}` |{default} {_meaning(field)} |"


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _fields(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _default(field: FieldInfo) -> str:
    return "" if field.default is PydanticUndefined else f"`{field.default!r}`"


def _type(annotation: Any) -> str:
    """How a reader would write the type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_type, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    names = {NoneType: "None", Ellipsis: "..."}
    return names.get(annotation) or str(annotation.__name__)


def _meaning(field: FieldInfo) -> str:
    limits = {"Gt": "above", "Ge": "at least", "Lt": "below", "Le": "at most"}
    bounds = [
        f"{words} {getattr(limit, kind.lower())}"
        for limit in field.metadata
        if (words := limits.get(kind := type(limit).__name__))
    ]
    text = re.sub(r"([|[\]])", r"\\\1", field.description or "")
    return "; ".join(part for part in (text, ", ".join(bounds)) if part)

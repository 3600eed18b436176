"""What a server answers, streamed or not, in one form."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class Choice:
    """One of the texts of an answer."""

    text: str = ""
    finish_reason: str | None = None


@dataclass
class Answer:
    """A whole answer; a stream's events are put together.

    Attributes:
        status: of HTTP.
        body: of an answer that is not streamed, if it is a JSON object.
        choices: by index.
        error: OpenAI's object of that name, of the body or of an event.
        ended: whether nothing is missing; the end of a stream is marked.
    """

    status: int
    body: Json = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    error: Json | None = None
    ended: bool = False

    def add(self, piece: Json) -> None:
        """Add a body or a stream's event."""
        if isinstance(error := piece.get("error"), dict):
            self.error = error
        for entry in piece.get("choices") or ():
            choice = self.choices.setdefault(entry["index"], Choice())
            said = entry.get("message") or entry.get("delta") or entry
            choice.text += said.get("content") or said.get("text") or ""
            choice.finish_reason = entry.get("finish_reason") or choice.finish_reason

    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text if 0 in self.choices else ""

    def report(self) -> Json | None:
        """What FastGen says of the request, if it was asked and is on."""
        found: Json | None = (self.body.get("kv_transfer_params") or {}).get("fastgen")
        return found

"""The sides of a comparison: vLLM without FastGen, beside it, and with it."""

from pydantic import BaseModel, ConfigDict

from fastgen_vllm.config import When, load_config

STOCK, BARE, FASTGEN = "stock", "bare", "fastgen"
LEGAL = (
    f"{STOCK}, {BARE}, {FASTGEN}, {FASTGEN}:PRESET or {FASTGEN}:FILE.yaml, "
    "with @MODEL behind it if not that of --model"
)


class Engine(BaseModel):
    """One side.

    Attributes:
        name: as the user gave it; names the side in tables and files.
        fastgen: preset or YAML file; None compresses nothing.
        plugin: whether vLLM loads FastGen's plugin at all.
        model: directory or hub name; None is the model of ``--model``.
        when: FastGen's option of that name; None leaves it to the preset.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    fastgen: str | None = None
    plugin: bool = True
    model: str | None = None
    when: When | None = None

    @property
    def chosen_when(self) -> When | None:
        """When it compacts; None if it does not compress."""
        return self.when or (load_config(self.fastgen).when if self.fastgen else None)

    @property
    def changes(self) -> dict[str, dict[str, str]]:
        """What is changed of the preset, as vLLM's ``additional_config``."""
        return {} if self.when is None else {"fastgen": {"when": self.when}}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of its processes."""
        return {} if self.plugin else {"VLLM_PLUGINS": ""}


def parse_engines(text: str, fastgen: str, when: When | None = None) -> tuple[Engine, ...]:
    """Read ``--engines``.

    Args:
        text: names, with commas between them.
        fastgen: preset or YAML file of the engine ``fastgen``.
        when: of all that compress.

    Raises:
        ValueError: names the option, its value and the legal set.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--engines {text!r}: name at least one of {LEGAL}.")
    if len(set(names)) < len(names):
        raise ValueError(f"--engines {text}: every engine once.")
    return tuple(_engine(name, fastgen, when) for name in names)


def baseline(engines: tuple[Engine, ...]) -> Engine:
    """The side that the others are compared with: stock, or else the first."""
    return next((engine for engine in engines if engine.name == STOCK), engines[0])


def _engine(name: str, fastgen: str, when: When | None) -> Engine:
    side, at, model = name.partition("@")
    kind, colon, source = side.partition(":")
    if (at and not model) or (colon and (kind != FASTGEN or not source)):
        raise ValueError(f"--engines {name}: must be {LEGAL}.")
    if kind == FASTGEN:
        option = f"--engines {FASTGEN}:" if colon else "--fastgen"
        load_config(source or fastgen, option, "")
        return Engine(name=name, fastgen=source or fastgen, model=model or None, when=when)
    if kind in (STOCK, BARE):
        return Engine(name=name, plugin=kind == STOCK, model=model or None)
    raise ValueError(f"--engines {name}: must be {LEGAL}.")

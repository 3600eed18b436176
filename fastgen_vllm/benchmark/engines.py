"""The sides of a comparison: vLLM without FastGen, beside it, and with it."""

from pydantic import BaseModel, ConfigDict

from fastgen_vllm.config import load_config

STOCK, BARE, FASTGEN = "stock", "bare", "fastgen"
LEGAL = f"{STOCK}, {BARE}, {FASTGEN}, {FASTGEN}:PRESET or {FASTGEN}:FILE.yaml"


class Engine(BaseModel):
    """One side.

    Attributes:
        name: as the user gave it; names the side in tables and files.
        fastgen: preset or YAML file; None compresses nothing.
        plugin: whether vLLM loads FastGen's plugin at all.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    fastgen: str | None = None
    plugin: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of its processes."""
        return {} if self.plugin else {"VLLM_PLUGINS": ""}


def parse_engines(text: str, fastgen: str) -> tuple[Engine, ...]:
    """Read ``--engines``.

    Args:
        text: names, with commas between them.
        fastgen: preset or YAML file of the engine ``fastgen``.

    Raises:
        ValueError: names the option, its value and the legal set.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--engines {text!r}: name at least one of {LEGAL}.")
    if len(set(names)) < len(names):
        raise ValueError(f"--engines {text}: every engine once.")
    return tuple(_engine(name, fastgen) for name in names)


def baseline(engines: tuple[Engine, ...]) -> Engine:
    """The side that the others are compared with: stock, or else the first."""
    return next((engine for engine in engines if engine.name == STOCK), engines[0])


def _engine(name: str, fastgen: str) -> Engine:
    if name == STOCK:
        return Engine(name=name)
    if name == BARE:
        return Engine(name=name, plugin=False)
    if name == FASTGEN:
        load_config(fastgen, "--fastgen", "")
        return Engine(name=name, fastgen=fastgen)
    kind, _, source = name.partition(":")
    if kind == FASTGEN and source:
        load_config(source, f"--engines {FASTGEN}:", "")
        return Engine(name=name, fastgen=source)
    raise ValueError(f"--engines {name}: must be {LEGAL}.")

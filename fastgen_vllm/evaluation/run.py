"""One evaluation: every part on the real engine, then the peers, then one set of results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fastgen_vllm.config import FastGenConfig, Rung, load_config
from fastgen_vllm.evaluation import tasks
from fastgen_vllm.evaluation.contexts import Context, Maker
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.facts import facts
from fastgen_vllm.evaluation.measure import UNCOMPRESSED, Item, Method, item_name
from fastgen_vllm.evaluation.parts import PartsFile
from fastgen_vllm.evaluation.recall import recalling_passages
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.settings import CONTINUATION, Settings
from fastgen_vllm.evaluation.texts import Corpus, built_in_corpora, corpora_from, cut_passages
from fastgen_vllm.models.embedded import ensure_default_model
from fastgen_vllm.models.tokenizer import load_tokenizer
from fastgen_vllm.request import GENERATED, KEEP, RECOVERY

#: Called with finished parts, parts in all, and what is being measured.
Progress = Callable[[int, int, str], None]

_PEERS = "peers"


@dataclass(frozen=True)
class Plan:
    """Everything that an evaluation will do, found to be possible."""

    settings: Settings
    model: str
    tokenizer: Any
    configs: list[FastGenConfig]  # one engine each
    items: list[Item]


def plan(settings: Settings) -> Plan:
    """Look at everything that a mistake can be in, before anything is measured.

    Raises:
        ValueError: an option that cannot be satisfied; names it and what to do.
    """
    configs = configs_of(settings)
    if settings.peers:
        from fastgen_vllm.evaluation.presses import require_kvpress

        require_kvpress()
    model = settings.model or str(ensure_default_model())
    tokenizer = load_tokenizer(model)
    return Plan(settings, model, tokenizer, configs, list(make_items(settings, tokenizer)))


def evaluate(plan: Plan, parts: PartsFile, progress: Progress) -> Results:
    """Measure everything that is not in ``parts`` yet, and return all results.

    Raises:
        OSError: a part could not be written.
    """
    settings, configs, items = plan.settings, plan.configs, plan.items
    order = [_part(config.name, item) for config in configs for item in items]
    answerable = [item for item in items if not isinstance(item, tasks.Problem)]
    if settings.peers:
        order += [_part(_PEERS, item) for item in answerable]

    for number, config in enumerate(configs):
        left = _left(config.name, items, parts)
        if not left:
            continue
        from fastgen_vllm.evaluation.ours import measure_on_engine

        methods = methods_of(config, settings, is_first=number == 0)
        progress(len(parts), len(order), config.name)
        for item, rows in measure_on_engine(
            plan.model, plan.tokenizer, config, methods, left, settings
        ):
            parts.add(_part(config.name, item), rows)
            progress(len(parts), len(order), config.name)
    left = _left(_PEERS, answerable, parts) if settings.peers else []
    if left:
        from fastgen_vllm.evaluation.theirs import measure_peers

        progress(len(parts), len(order), _PEERS)
        for item, rows in measure_peers(plan.model, plan.tokenizer, left, settings):
            parts.add(_part(_PEERS, item), rows)
            progress(len(parts), len(order), _PEERS)
    return parts.results(facts(settings), order)


def _left(group: str, items: Sequence[Item], parts: PartsFile) -> list[Item]:
    """What a group has not measured yet, with replies that an earlier group was given."""
    left: list[Item] = []
    for item in items:
        if _part(group, item) in parts:
            continue
        if isinstance(item, Context):
            replies = parts.replies(item.name)
            item = item.answered({reply.question: reply.tokens for reply in replies})
        left.append(item)
    return left


def _part(group: str, item: Item) -> str:
    return f"{group}/{item_name(item)}"


def make_items(settings: Settings, tokenizer: Any) -> Iterator[Item]:
    """Yield everything to measure, in a fixed order."""
    corpora = corpora_from(settings.texts) if settings.texts else built_in_corpora()
    if CONTINUATION in settings.protocols:
        size = (settings.lengths, settings.continuation, settings.per_kind, settings.seed)
        yield from cut_passages(corpora, tokenizer, *size)
        if not settings.texts:
            yield from recalling_passages(corpora, tokenizer, *size)
    yield from _contexts(settings, tokenizer, corpora)
    for task in settings.tasks:
        yield from tasks.load(task, settings.problems, settings.seed)


def _contexts(settings: Settings, tokenizer: Any, corpora: Sequence[Corpus]) -> Iterator[Context]:
    protocols = [name for name in settings.protocols if name != CONTINUATION]
    if not (protocols and settings.retrieval):
        return
    dialogue = Dialogue.of(tokenizer)
    for length in settings.retrieval_lengths:
        maker = Maker(corpora, tokenizer, dialogue, length, settings.seed)
        for protocol in protocols:
            yield from maker.contexts(protocol, settings.retrieval_tasks, settings.samples)


def configs_of(settings: Settings) -> list[FastGenConfig]:
    """One configuration for each engine to start.

    Raises:
        ValueError: a preset cannot be read, or two have one name.
    """
    configs = [load_config(preset, "--preset", "") for preset in settings.presets]
    if settings.ablation:
        paper = [config for config in configs if config.policy == "paper"]
        if not paper:
            raise ValueError("--ablation needs a preset of policy paper: add --preset paper.")
        for rung in get_args(Rung):
            without = paper[0].paper.model_copy(update={"without": (rung,)})
            name = f"{paper[0].name} without {rung}"
            configs.append(paper[0].model_copy(update={"name": name, "paper": without}))
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"--preset: two of {', '.join(names)} have one name; set another `name`.")
    return configs


def methods_of(config: FastGenConfig, settings: Settings, *, is_first: bool) -> list[Method]:
    """The ways in which one engine treats every prompt; ``full`` is measured once.

    At a given kept share all generated tokens are kept, as kvpress keeps them, so that memory is
    equal all along a continuation. An ablated ladder is measured at its own threshold alone.
    """
    methods = [UNCOMPRESSED] if is_first else []
    methods.append(Method(config.name))
    if config.policy == "coverage":
        for share in settings.keep:
            methods.append(Method(config.name, share, ((KEEP, share), (GENERATED, "keep"))))
    if config.policy != "full" and not config.paper.without:
        for recovery in settings.recovery:
            methods.append(Method(f"{config.name} T={recovery:g}", None, ((RECOVERY, recovery),)))
    return methods

"""What a request is told of itself, and what the log is told, beside what the engine holds."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.integration.summary import SUMMARY_KEY
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.tiny import random_prompts

ANSWER = 40


def make_engine(model: Path, is_async: bool = False, **options: Any) -> Engine:
    fastgen = FastGenConfig(
        when="always",
        policy="coverage",
        keep=0.25,
        min_prompt=100,
        log_requests=True,
        coverage=CoverageOptions(generated=1),
    )
    return Engine(
        engine_config(
            model, fastgen, async_scheduling=is_async, skip_tokenizer_init=True, **options
        )
    )


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> Any:
    made = make_engine(tiny_llama, request.param)
    yield made
    made.close()


def run(engine: Engine, prompts: list[list[int]], **arguments: Any) -> list[Any]:
    """Run prompts together; return `kv_transfer_params` of each, in order."""
    ids = [
        engine.add(prompt, max_tokens=ANSWER, detokenize=False, extra_args=arguments)
        for prompt in prompts
    ]
    found = {}
    while engine.llm.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = output.kv_transfer_params
    return [found[request_id] for request_id in ids]


def test_summary_is_what_the_engine_held(engine: Engine) -> None:
    (prompt,) = random_prompts([600])
    held: list[int] = []

    request_id = engine.add(
        prompt, max_tokens=ANSWER, detokenize=False, extra_args={"fastgen_report": "on"}
    )
    while engine.llm.has_unfinished_requests():
        internal = engine.internal_id(request_id)
        if internal is not None:
            held.append(engine.scheduler._manager.num_blocks(internal))
        finished = [output for output in engine.step() if output.finished]
    summary = finished[0].kv_transfer_params[SUMMARY_KEY]
    assert summary["prompt_tokens"] == 600 and summary["answer_tokens"] == ANSWER
    assert summary["kept_share"] == pytest.approx(0.25, abs=0.02)
    assert sum(summary["policies"].values()) == 6
    assert summary["blocks"] == held[-1] < held[0]
    # With async scheduling a token more is on its way when the last one is found to be the last.
    stored = 600 + ANSWER
    assert summary["blocks_uncompressed"] in (
        -(-(stored - 1) // BLOCK_SIZE),
        -(-stored // BLOCK_SIZE),
    )
    assert summary["preemptions"] == 0 and summary["uncompacted_because"] is None


def test_uncompacted_requests_say_why(engine: Engine) -> None:
    prompts = random_prompts([600, 50])
    for arguments, reasons in (({}, [None, "short"]), ({"fastgen": "off"}, ["off", "off"])):
        found = run(engine, prompts, fastgen_report="on", **arguments)
        summaries = [answer[SUMMARY_KEY] for answer in found]
        assert [summary["uncompacted_because"] for summary in summaries] == reasons
        for summary, reason in zip(summaries, reasons, strict=True):
            if reason is not None:
                assert (summary["kept_share"], summary["policies"]) == (1.0, {})
                assert summary["blocks"] >= summary["blocks_uncompressed"]


def test_a_prompt_of_no_more_tokens_than_are_kept_is_served_as_it_is(engine: Engine) -> None:
    prompts = random_prompts([600, 300, 299])
    found = run(engine, prompts, fastgen_report="on", fastgen_keep_tokens=300)
    summaries = [answer[SUMMARY_KEY] for answer in found]
    shares = [(summary["kept_share"], summary["uncompacted_because"]) for summary in summaries]
    assert shares == [(0.5, None), (1.0, "no_saving"), (1.0, "no_saving")]


def test_answers_say_nothing_unasked(engine: Engine) -> None:
    prompts = random_prompts([600, 50])
    assert run(engine, prompts) == [None, None]
    assert run(engine, prompts, fastgen_report="off") == [None, None]


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(json.loads(record.getMessage()))


def test_log_has_every_request(tiny_llama: Path) -> None:
    """Those that end, are aborted and were preempted."""
    engine = make_engine(tiny_llama, num_gpu_blocks_override=40, max_model_len=1024)
    requests = logging.getLogger("vllm.fastgen.requests")
    # vLLM's level was set when it was imported, maybe by a command that wants quiet.
    requests.setLevel(logging.INFO)
    log = Lines()
    requests.addHandler(log)
    try:
        prompts = random_prompts([600, 50, 600, 600, 600])
        ids = [engine.add(p, max_tokens=200, detokenize=False) for p in prompts]
        for _ in range(3):
            engine.step()
        engine.llm.abort_request([ids[0]])
        engine.run()
        lines = log.found
        by_id = {line["request_id"]: line for line in lines}
        assert sorted(by_id) == ids and len(lines) == len(ids)
        assert by_id[ids[0]]["finish_reason"] == "abort"
        assert by_id[ids[1]]["uncompacted_because"] == "short"
        for request_id in ids[1:]:
            assert by_id[request_id]["finish_reason"] == "length"
            assert by_id[request_id]["answer_tokens"] == 200
        assert sum(line["preemptions"] for line in lines) == engine.preemptions > 0
    finally:
        requests.removeHandler(log)
        requests.setLevel(logging.NOTSET)
        engine.close()

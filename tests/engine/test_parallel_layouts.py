"""Ranks that share layers give one rank's greedy tokens, and a rank's death is told, with its name, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from family_checkpoints import CONFIGS, save_checkpoint
from serving import children
from tiny_checkpoint import write_tiny_llama

from octavo.batch import TokenLogprobs
from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.errors import ConfigError, OctavoError
from octavo.executor import child_process
from octavo.models.hub import ModelFiles
from octavo.models.loader import read_model_config
from octavo.models.sharding import share_out
from octavo.sampling_params import SamplingParams

FAMILIES = ("llama", "llama-biases", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-short")
PROMPTS = ([5, 9, 33, 51, 8], list(range(3, 60)), [50, 4] * 9)

BFLOAT16_TOLERANCE = 0.03
"""Of a log probability: sums of another order are rounded to 8 bits in every layer."""


def start(
    folder: Path, tensor: int, pipeline: int = 1, progress: Callable[[str, float], None] = lambda phase, fraction: None, **options: object
) -> EngineCore:
    chosen = {"dtype": "float32", "threads": 2, "kv_cache_memory_bytes": 2**20, "max_num_batched_tokens": 32, "max_model_len": 96} | options
    layout = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return EngineCore(engine_options(**layout, **chosen), ModelFiles("tiny", "hf", folder), progress)


def generate(core: EngineCore, **params: object) -> list[list[int]]:
    """Greedy tokens of all prompts, run together, in chunks of prompts and single tokens."""
    chosen = SamplingParams(**({"temperature": 0.0, "max_tokens": 16, "ignore_eos": True} | params))
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(PROMPTS))}
    for number, prompt in enumerate(PROMPTS):
        core.handle(AddRequest(str(number), prompt, chosen, seed=number))
    while core.has_work():
        output = core.step()
        for update in output.updates if output is not None else ():
            assert update.finish_reason != "error", update.stop_reason
            tokens[update.request_id] += update.token_ids
    return list(tokens.values())


def prompt_scores(core: EngineCore) -> list[TokenLogprobs]:
    """Of each place of a prompt: its token, and the two most likely ones."""
    prompt = [(7 * number * number + 3) % 60 for number in range(80)]
    core.handle(AddRequest("0", prompt, SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2), seed=0))
    scores: list[TokenLogprobs] = []
    while core.has_work():
        output = core.step()
        for update in output.updates if output is not None else ():
            scores += update.prompt_logprobs or []
    assert len(scores) == len(prompt) - 1
    return scores


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_one_rank(family: str, tmp_path: Path) -> None:
    assert family in CONFIGS
    save_checkpoint(family, tmp_path, layers=4)
    assert [len(shard.layers) for shard in share_out(read_model_config(ModelFiles("tiny", "hf", tmp_path)), 1, 3)] == [1, 2, 1]
    core = start(tmp_path, 1)
    expected = generate(core)
    core.shutdown()
    # Four ranks are more than the two key/value heads that these have: each keeps a copy of one.
    for layout in ((2, 1), (4, 1), (1, 2), (1, 3), (2, 2)):
        core = start(tmp_path, *layout)
        assert generate(core) == expected, layout
        core.shutdown()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_agrees_with_one_rank_where_the_margin_allows(family: str, tmp_path: Path) -> None:
    """All layouts see the same tokens, those of a prompt, and say which they would have expected at each place."""
    save_checkpoint(family, tmp_path, layers=4)
    core = start(tmp_path, 1, dtype="bfloat16")
    expected = prompt_scores(core)
    core.shutdown()
    clear = [place for place, scores in enumerate(expected) if scores.logprobs[1] - scores.logprobs[2] > 2 * BFLOAT16_TOLERANCE]
    assert len(clear) > 0.6 * len(expected)
    for layout in ((2, 1), (4, 1), (2, 2)):
        core = start(tmp_path, *layout, dtype="bfloat16")
        found = prompt_scores(core)
        core.shutdown()
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.logprobs[0] == pytest.approx(theirs.logprobs[0], abs=BFLOAT16_TOLERANCE), layout
        assert [found[place].token_ids[1] for place in clear] == [expected[place].token_ids[1] for place in clear], layout


def test_each_stage_of_a_pipeline_has_a_step(tiny: Path) -> None:
    """A prompt's chunks follow each other, decoding sequences take turns, and a token is never asked for before it is known."""
    core = start(tiny, 1, 2, max_num_batched_tokens=8)
    for number, prompt in enumerate(([7] * 40, [5, 9], [6, 8])):
        core.handle(AddRequest(str(number), prompt, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True), seed=0))
    in_flight, chunks, turns = [], 0, 0
    while core.has_work():
        core.step()
        in_flight.append(len(core._in_flight))
        steps = [{entry.seq_id: entry for entry in batch.scheduled} for batch, _ in core._in_flight]
        chunks += len(steps) == 1 and 0 in steps[0] and not steps[0][0].samples
        turns += core.scheduler.num_running == 3 and len(steps) == 1 and all(entry.samples for entry in steps[0].values())
    core.shutdown()
    assert max(in_flight) == 1, "one more than those that stay when a step has been collected: as many as stages"
    assert chunks >= 3 and turns >= 8


def test_drawn_tokens_penalties_and_logprobs_are_those_of_one_rank(tiny: Path) -> None:
    params = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2, "prompt_logprobs": 1}
    runs = []
    for layout in ((1, 1), (2, 1), (1, 2)):
        core = start(tiny, *layout)
        runs.append(generate(core, **params))
        core.shutdown()
    assert runs[0] == runs[1] == runs[2]


def test_the_same_layout_gives_the_same_tokens_in_bfloat16_and_int8(tiny: Path) -> None:
    for options in ({"dtype": "bfloat16"}, {"quantization": "int8"}):
        runs = []
        for _ in range(2):
            core = start(tiny, 2, 2, **options)
            runs.append(generate(core))
            core.shutdown()
        assert runs[0] == runs[1]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", ["start-up", "idle", "prefill", "decode"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
@pytest.mark.parametrize("layout", [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_a_rank_that_dies_or_hangs_is_named(
    tiny: Path, layout: tuple[int, int], rank: int, moment: str, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "SILENCE_SECONDS", 3.0)
    pids: list[int] = []

    def strike() -> None:
        pids[:] = pids or children(os.getpid(), b"octavo.executor.worker")
        os.kill(pids[rank], how)

    def strike_at_first(phase: str, fraction: float) -> None:
        if not pids:
            strike()

    def go_on() -> None:
        core = start(tiny, *layout, progress=strike_at_first if moment == "start-up" else lambda phase, fraction: None)
        try:
            if moment in ("prefill", "decode"):
                core.handle(AddRequest("0", PROMPTS[1], SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True), seed=0))
            while moment == "decode" and not any(update.token_ids for output in [core.step()] if output for update in output.updates):
                pass
            strike()
            while True:
                core.step() if core.has_work() else core.check()
        finally:
            core.shutdown()

    with pytest.raises(OctavoError, match=r"rank \d of 2 \(process \d+\) (ended with signal SIGKILL|has shown no sign of life)") as told:
        go_on()
    assert f"rank {rank} of 2 (process {pids[rank]})" in str(told.value)
    assert all(map(gone, pids))


def test_a_rank_that_ended_before_a_step_was_sent_is_named(tiny: Path) -> None:
    """It takes no messages any more: the engine does not wait for it to."""
    core = start(tiny, 2, 1)
    try:
        pids = children(os.getpid(), b"octavo.executor.worker")
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(0.5)  # until its sockets are closed
        core.handle(AddRequest("0", PROMPTS[1], SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True), seed=0))
        with pytest.raises(OctavoError, match=rf"rank 0 of 2 \(process {pids[0]}\) ended with signal SIGKILL"):
            core.step()
    finally:
        core.shutdown()


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_workers_leave_with_their_engine(tiny: Path, stopped: bool) -> None:
    """Killed without a word, the engine leaves no worker behind, not even one that can do nothing."""
    program = (
        "import sys, time; from pathlib import Path; from octavo.config import engine_options;"
        "from octavo.engine.core import EngineCore; from octavo.models.hub import ModelFiles;"
        "options = engine_options(tensor_parallel_size=2, kv_cache_memory_bytes=2**20);"
        "core = EngineCore(options, ModelFiles('tiny', 'hf', Path(sys.argv[1])));"
        "print(*core._executor.pids, flush=True); time.sleep(600)"
    )
    engine = subprocess.Popen([sys.executable, "-c", program, str(tiny)], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    pids = list(map(int, engine.stdout.readline().split()))
    assert len(pids) == 2
    if stopped:
        os.kill(pids[1], signal.SIGSTOP)
    engine.kill()
    engine.wait()
    engine.stdout.close()
    end = time.monotonic() + 20
    while not all(map(gone, pids)):
        assert time.monotonic() < end, "a worker still runs"
        time.sleep(0.05)


def test_a_rank_that_cannot_start_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(OctavoError, match=r"rank \d of 2 \(process \d+\): .* holds no weights"):
        start(tmp_path, 2)


def test_more_ranks_than_heads_can_be_shared_by_are_refused_before_any_starts(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 of them"):
        start(tiny, 5)


def test_three_ranks_share_two_key_value_heads(tiny: Path) -> None:
    shards = share_out(read_model_config(ModelFiles("tiny", "hf", tiny)), 3, 1)
    assert [list(shard.heads) for shard in shards] == [[0, 1], [2], [3]]
    assert [list(shard.kv_heads) for shard in shards] == [[0], [1], [1]]

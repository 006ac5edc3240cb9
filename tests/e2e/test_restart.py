"""An engine that is killed finds its L1 again, and nothing that is doubtful is ever served."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crashes import Death, SlabFile, Watch, fork_ranks, moments, run_and_kill, shared_folder
from tests.e2e.engine_client import EngineClient
from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.e2e.server import Server
from tests.models import MODELS, prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]
FULL_TOKENS = 256
"""Of a prompt of 300 tokens, what whole slots of two blocks or more can hold and still leave a token to compute."""

Reference = Callable[..., list[list[int]]]


@pytest.fixture
def slab_folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


def _options(folder: Path, *, engine: dict[str, Any] | None = None, **connector: Any) -> EngineOptions:
    return EngineOptions(connector={"capacity": "64MiB", "slab_dir": str(folder), **connector}, **(engine or {}))


def _tokens(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def _cached(answers: list[dict[str, Any]]) -> list[int]:
    return [answer["cached_tokens"] for answer in answers]


# One process: scenarios in forks.


def _answer_and_die(death: Death, options: EngineOptions, prompts: list[list[int]]) -> None:
    """Also for engines of several processes: one step more than the last answer needs, so that jobs are reported."""
    from tests.e2e.engine import Engine

    engine = Engine(options)
    answers = engine.generate(prompts)
    if options.in_process():
        from tests.e2e.inside import settle

        settle(engine)
    else:
        time.sleep(1.0)
    death.comes_now({"answers": answers, "hits": engine.external_hit_tokens()})


def _answer(options: EngineOptions, prompts: list[list[int]]) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    fork_ranks()
    with Engine(options) as engine:
        # One by one, so that a block that two prompts miss is counted for both.
        answers = [engine.generate([tokens])[0] for tokens in prompts]
        counts = engine.metrics("vllm:kvcache")
        return {"answers": answers, "hits": engine.external_hit_tokens(), "counts": counts}


@pytest.mark.matrix
def test_a_killed_engine_is_warm(scenarios: Scenarios, reference: Reference, slab_folder: Path) -> None:
    options = _options(slab_folder)
    expected = reference(options, PROMPTS)
    cold = run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    assert _tokens(cold["answers"]) == expected
    assert cold["hits"] == 0
    (slab,) = SlabFile.all(slab_folder)
    assert slab.slots(SlabFile.READY)
    assert not slab.slots(SlabFile.FILLING)
    # The control: it claims what the real one will find, and its answers must be wrong.
    control = scenarios.run(_answer, _options(slab_folder, drill="claim_hits_load_nothing"), PROMPTS)
    assert _cached(control["answers"]) == [FULL_TOKENS] * 2
    assert all(got != right for got, right in zip(_tokens(control["answers"]), expected, strict=True))
    shutil.rmtree(slab_folder)
    run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    warm = scenarios.run(_answer, options, PROMPTS)
    assert _cached(warm["answers"]) == [FULL_TOKENS] * 2
    assert warm["hits"] == 2 * FULL_TOKENS
    assert _tokens(warm["answers"]) == expected


def test_new_weights_at_the_same_path_are_another_model(
    scenarios: Scenarios, reference: Reference, slab_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS["tiny"].folder(), folder)
    options = _options(slab_folder, engine={"more": {"model": str(folder)}})
    run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    same = scenarios.run(_answer, options, PROMPTS)
    assert _cached(same["answers"]) == [FULL_TOKENS] * 2, "the copy is served before it is changed"

    # A fine-tuned model of the same shape, written over the old one: same name, same size.
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    middle = header_bytes + (len(content) - header_bytes) // 2
    content[middle:] = content[middle:][::-1]
    weights.write_bytes(content)
    other = scenarios.run(_answer, options, PROMPTS)
    assert other["hits"] == 0
    assert _cached(other["answers"]) == [0, 0]
    assert _tokens(other["answers"]) != _tokens(same["answers"])
    # The old blocks are of no use to anybody, and not in the way: the new ones have a file of their own.
    assert len({slab.path.name[:40] for slab in SlabFile.all(slab_folder)}) == 2


def _reset_and_die(death: Death, options: EngineOptions) -> None:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats, settle

    engine = Engine(options)
    engine.generate(PROMPTS)
    settle(engine)
    ready = planner_stats(engine)["slots_ready"]
    engine.forget(connector=True)
    settle(engine)
    death.comes_now({"ready": ready})


def test_a_reset_holds_for_restarts(scenarios: Scenarios, reference: Reference, slab_folder: Path) -> None:
    options = _options(slab_folder)
    killed = run_and_kill(scenarios, _reset_and_die, options)
    assert killed["ready"] > 0
    after = scenarios.run(_answer, options, PROMPTS)
    assert after["hits"] == 0
    assert _tokens(after["answers"]) == reference(options, PROMPTS)
    # What was computed since the reset is served again.
    assert scenarios.run(_answer, options, PROMPTS)["hits"] == 2 * FULL_TOKENS


def _damage_one_slot(
    scenarios: Scenarios, options: EngineOptions, prompts: list[list[int]], damage: Callable[[SlabFile, int], None]
) -> dict[str, Any]:
    run_and_kill(scenarios, _answer_and_die, options, prompts)
    assert options.connector is not None
    slab = SlabFile.all(Path(options.connector["slab_dir"]))[-1]
    damage(slab, slab.slots(SlabFile.READY)[-1])
    return dict(scenarios.run(_answer, options, prompts))


@pytest.mark.slow
def test_a_damaged_record_is_a_miss(scenarios: Scenarios, reference: Reference, slab_folder: Path) -> None:
    options = _options(slab_folder)
    run = _damage_one_slot(scenarios, options, PROMPTS, SlabFile.flip_key)
    assert sorted(_cached(run["answers"])) == [FULL_TOKENS // 2, FULL_TOKENS]
    assert run["counts"]["vllm:kvcache_failed_loads"] == 0
    assert _tokens(run["answers"]) == reference(options, PROMPTS)


@pytest.mark.parametrize("load_mode", ["layerwise", pytest.param("async", marks=pytest.mark.slow)])
def test_damaged_bytes_are_computed_again(
    scenarios: Scenarios, reference: Reference, slab_folder: Path, load_mode: str
) -> None:
    options = _options(slab_folder, verify_l1=True, load_mode=load_mode)
    run = _damage_one_slot(scenarios, options, PROMPTS, SlabFile.flip_data)
    assert run["counts"]["vllm:kvcache_failed_loads"] == 1
    assert _tokens(run["answers"]) == reference(options, PROMPTS)


def _start(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        answers = engine.generate(PROMPTS)
        engine.forget()
        return {"answers": answers, "again": engine.generate(PROMPTS)}


def _start_error(options: EngineOptions) -> str:
    from tests.e2e.engine import Engine

    try:
        Engine(options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "started"


BAD_INPUT = {
    "capacity-below-a-slot": ({"capacity": "1KiB"}, "capacity of 1024 bytes is below one slot of"),
    "no-size": ({"capacity": "much"}, "setting 'capacity' has the value 'much', which is not a size"),
    "unknown-setting": (
        {"slab_path": "/dev/shm"},
        "unknown setting 'slab_path' in kv_connector_extra_config: did you mean",
    ),
    "unknown-policy": ({"eviction": "lruu"}, "lruu"),
    "unknown-drill": ({"drill": "explode"}, "unknown drill"),
    "too-many-slots": ({"capacity": 1 << 62}, "capacity of 4611686018427387904 bytes is 17592186044416 slots"),
}

ALWAYS = ("capacity-below-a-slot", "unknown-setting")
"""Two seconds each: the others are of the slow part."""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param(*case, id=name, marks=[] if name in ALWAYS else pytest.mark.slow)
        for name, case in BAD_INPUT.items()
    ],
)
def test_bad_settings_stop_the_start(
    scenarios: Scenarios, slab_folder: Path, setting: dict[str, Any], message: str
) -> None:
    said = scenarios.run(_start_error, _options(slab_folder, **setting))
    assert message in said


def test_a_slab_dir_that_is_a_file_stops_the_start(scenarios: Scenarios, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    said = scenarios.run(_start_error, _options(file))
    assert f"cannot use {file} for slab files" in said
    assert "set slab_dir" in said
    assert file.read_text() == "precious"


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 8 MiB, like /dev/shm in a container that was started without --shm-size."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode:
        pytest.skip("only root of a machine of its own can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_more_than_shared_memory_holds_is_private_memory_and_a_warning(
    scenarios: Scenarios, reference: Reference, small_folder: Path
) -> None:
    run = scenarios.run(_start, _options(small_folder))
    warnings = [line for line in _log(scenarios).splitlines() if "WARNING" in line and "anonymous memory" in line]
    assert len(warnings) == 1
    assert "does not fit into the file system of" in warnings[0]
    assert _cached(run["again"]) == [FULL_TOKENS] * 2
    assert _tokens(run["again"]) == reference(_options(small_folder), PROMPTS)


def test_more_than_the_machine_has_stops_the_start(scenarios: Scenarios, slab_folder: Path) -> None:
    """Said when the engine starts, not by the kernel an hour later."""
    said = scenarios.run(_start_error, _options(slab_folder, capacity="4TiB"))
    assert "does not fit into this machine's memory" in said
    assert "lower the capacity" in said
    assert not SlabFile.all(slab_folder)


def _log(scenarios: Scenarios) -> str:
    """What the last scenario printed."""
    return max(scenarios.logs.glob("*.log")).read_text()


# Killed at any moment.

LIVES = 20
ANSWER_TOKENS = 12


def _one_life(
    death: Death,
    options: EngineOptions,
    known: list[list[int]],
    new: list[list[int]],
    dies_after_s: float,
    jobs_in_flight: Path,
) -> None:
    """Answers what the engine before may have stored, then offloads new prompts or loads the old ones once more."""
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats, settle

    engine = Engine(options)
    answers = [engine.generate([tokens], tokens=ANSWER_TOKENS)[0] for tokens in known]
    death.last_words({"answers": answers, "hits": engine.external_hit_tokens()})
    settle(engine)
    if not new:
        engine.forget()
    Watch(jobs_in_flight, lambda: int(planner_stats(engine)["jobs_in_flight"]))
    death.comes_in(dies_after_s)
    for tokens in new or known:
        engine.generate([tokens], tokens=ANSWER_TOKENS)
    settle(engine)
    time.sleep(60)


@pytest.mark.slow
def test_killed_at_random_moments(
    scenarios: Scenarios, reference: Reference, slab_folder: Path, tmp_path: Path
) -> None:
    """Twenty engines die while they offload or load; each one's successor answers everything as if nothing had been."""
    throttled = {"slot_blocks": 1, "drill": "copy_bytes_per_s=3e6"}
    engine = {"requests_max": 1}
    sets = [[prompt(1000 + 10 * life + index, 300) for index in range(3)] for life in range(LIVES // 2 + 1)]
    everything = [tokens for three in sets for tokens in three]
    right = reference(_options(slab_folder, engine=engine), everything, tokens=ANSWER_TOKENS)
    expected = {tuple(tokens): answer for tokens, answer in zip(everything, right, strict=True)}

    counts = {"in flight": 0, "loaded": 0, "half-filled slots": 0, "in flight at a load": 0}
    known: list[list[int]] = []
    waiting = iter(sets)
    jobs_in_flight = tmp_path / "jobs"
    for life, moment in enumerate(moments(LIVES, 0.7, seed=4)):
        offloads = life % 2 == 0
        load_mode = "async" if life % 4 < 2 else "layerwise"
        options = _options(slab_folder, engine=engine, load_mode=load_mode, **throttled)
        new = next(waiting) if offloads else []
        run = run_and_kill(scenarios, _one_life, options, known, new, moment, jobs_in_flight)
        assert _tokens(run["answers"]) == [expected[tuple(tokens)] for tokens in known], f"life {life}, {load_mode}"
        in_flight = Watch.last(jobs_in_flight) > 0
        counts["in flight"] += in_flight
        counts["in flight at a load"] += in_flight and not offloads
        counts["loaded"] += run["hits"] > 0
        counts["half-filled slots"] += bool(SlabFile.all(slab_folder)[0].slots(SlabFile.FILLING))
        known = new or known
    last = scenarios.run(_answer, _options(slab_folder, engine=engine, **throttled), everything, timeout_s=180)
    assert [answer[:ANSWER_TOKENS] for answer in _tokens(last["answers"])] == right[: len(last["answers"])]
    print(counts, _cached(last["answers"]))
    least = {"in flight": LIVES // 2, "in flight at a load": 3, "half-filled slots": 3, "loaded": LIVES // 2}
    assert all(counts[what] >= number for what, number in least.items()), counts


# Several processes.


def _right(scenarios: Scenarios, options: EngineOptions, prompts: list[list[int]]) -> list[list[int]]:
    """What an engine of as many ranks answers without a connector."""
    return _tokens(scenarios.run(_answer, options.without_connector(), prompts)["answers"])


@pytest.mark.slow
def test_processes_of_their_own(reference: Reference, slab_folder: Path, log: Path) -> None:
    """All of an engine's processes, imports and all, killed and started again; the CPU's default thread binding."""
    options = _options(slab_folder, engine={"core_process": True, "environment": {"VLLM_CPU_OMP_THREADS_BIND": "auto"}})
    with EngineClient(options, log) as engine:
        cold = engine.generate(PROMPTS)
        time.sleep(1.0)
        engine.kill()
    with EngineClient(options, log) as engine:
        warm = engine.generate(PROMPTS)
        engine.kill()
    with EngineClient(_options(slab_folder, drill="claim_hits_load_nothing"), log) as engine:
        control = engine.generate(PROMPTS)
    assert _cached(cold) == [0, 0]
    assert _cached(warm) == _cached(control) == [FULL_TOKENS] * 2
    assert _tokens(warm) == _tokens(cold) == reference(options, PROMPTS)
    assert all(got != right for got, right in zip(_tokens(control), _tokens(cold), strict=True))


def _answer_once_and_idle(death: Death, options: EngineOptions) -> None:
    from tests.e2e.engine import Engine

    engine = Engine(options)
    death.last_words(engine.generate(PROMPTS[:1], tokens=1))
    death.comes_in(1.0)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{}, {"tensor_parallel": 2}], ids=["one", "tp2"])
def test_one_request_then_nothing(scenarios: Scenarios, slab_folder: Path, ranks: dict[str, int]) -> None:
    """Nobody asks anything for the second before the kill: what was computed is stored all the same."""
    options = _options(slab_folder, engine={"core_process": True, **ranks}, slot_blocks=4)
    run_and_kill(scenarios, _answer_once_and_idle, options)
    for slab in SlabFile.all(slab_folder):
        assert len(slab.slots(SlabFile.READY)) >= 2
        assert not slab.slots(SlabFile.FILLING)
    warm = scenarios.run(_answer, options, PROMPTS[:1])
    assert _cached(warm["answers"]) == [FULL_TOKENS]
    assert _tokens(warm["answers"]) == _right(scenarios, options, PROMPTS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{"tensor_parallel": 2}, {"pipeline_parallel": 2}], ids=["tp2", "pp2"])
def test_several_ranks(scenarios: Scenarios, slab_folder: Path, ranks: dict[str, int]) -> None:
    options = _options(slab_folder, engine=ranks)
    cold = run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    assert [slab.path.name[-10:] for slab in SlabFile.all(slab_folder, rank=0)] == ["rank0.slab"]
    assert len(SlabFile.all(slab_folder)) == 2
    assert len({slab.lane() for slab in SlabFile.all(slab_folder)}) == 1
    warm = scenarios.run(_answer, options, PROMPTS)
    assert _cached(warm["answers"]) == [FULL_TOKENS] * 2
    assert _tokens(warm["answers"]) == _tokens(cold["answers"]) == _right(scenarios, options, PROMPTS)


@pytest.mark.slow
def test_a_record_damaged_on_one_rank_is_a_miss_on_both(scenarios: Scenarios, slab_folder: Path) -> None:
    options = _options(slab_folder, engine={"tensor_parallel": 2}, slot_blocks=4)
    cold = run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    (slab,) = SlabFile.all(slab_folder, rank=1)
    ready = slab.slots(SlabFile.READY)
    slab.flip_key(ready[-1])
    warm = scenarios.run(_answer, options, PROMPTS)
    # The last block of one prompt: what comes before it and the other prompt are hits.
    assert max(_cached(warm["answers"])) == FULL_TOKENS
    assert 0 < min(_cached(warm["answers"])) < FULL_TOKENS
    assert warm["counts"]["vllm:kvcache_failed_loads"] == 0
    assert _tokens(warm["answers"]) == _tokens(cold["answers"]) == _right(scenarios, options, PROMPTS)


@pytest.mark.slow
def test_bytes_damaged_on_one_rank_are_computed_again_on_both(scenarios: Scenarios, slab_folder: Path) -> None:
    options = _options(slab_folder, engine={"tensor_parallel": 2}, slot_blocks=4, verify_l1=True)
    run_and_kill(scenarios, _answer_and_die, options, PROMPTS)
    (slab,) = SlabFile.all(slab_folder, rank=1)
    slab.flip_data(slab.slots(SlabFile.READY)[-1])
    warm = scenarios.run(_answer, options, PROMPTS)
    assert warm["counts"]["vllm:kvcache_failed_loads"] == 1
    assert _tokens(warm["answers"]) == _right(scenarios, options, PROMPTS)
    # The damaged block was forgotten and stored again.
    again = scenarios.run(_answer, options, PROMPTS)
    assert again["counts"]["vllm:kvcache_failed_loads"] == 0
    assert _cached(again["answers"]) == [FULL_TOKENS] * 2


@pytest.mark.slow
def test_two_engines_at_once_have_lanes_of_their_own(reference: Reference, slab_folder: Path, tmp_path: Path) -> None:
    """Both are killed; the successors find both lanes, whichever comes first."""
    names = ("left", "right")
    options = {name: _options(slab_folder, engine={"engine_id": name}) for name in names}
    prompts = dict(zip(names, PROMPTS, strict=True))
    expected = dict(zip(names, reference(options["left"], PROMPTS), strict=True))
    for life in range(2):
        engines = {name: EngineClient(options[name], tmp_path / f"{name}.log") for name in reversed(names)}
        try:
            for name, engine in engines.items():
                (answer,) = engine.generate([prompts[name]])
                assert answer["tokens"] == expected[name]
                assert answer["cached_tokens"] == (FULL_TOKENS if life else 0)
            time.sleep(1.0)
        finally:
            for engine in engines.values():
                engine.kill()
        assert [slab.lane() for slab in SlabFile.all(slab_folder)] == [0, 1]


@pytest.mark.slow
def test_data_parallel_engines(reference: Reference, slab_folder: Path, log: Path) -> None:
    """Each engine of a data-parallel server has a lane; after the kill each finds its own again."""
    options = _options(slab_folder, engine={"engine_id": "server"})
    expected = reference(options, PROMPTS)
    for life in range(2):
        server = Server(options, log, data_parallel=2)
        try:
            server.wait_ready()
            for rank, tokens in enumerate(PROMPTS):
                answer = server.complete(tokens, engine=rank)
                assert answer.tokens == expected[rank]
                assert answer.cached_tokens == (FULL_TOKENS if life else 0)
            time.sleep(1.0)
        finally:
            server.kill()
        assert [slab.lane() for slab in SlabFile.all(slab_folder)] == [0, 1]

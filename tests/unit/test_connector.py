"""The connector's two sides, driven as vLLM drives them, over the real native module and tensors on the CPU."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from aibrix_connector import connector as connector_module
from aibrix_connector import metadata, scheduler
from aibrix_connector.connector import AIBrixOffloadingConnectorV1Type3 as Connector
from aibrix_connector.metadata import WorkerReports
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from tests.unit.fakes import request
from tests.unit.small_engine import FULL_GRAPH, Engine, blocks


class PanicException(BaseException):
    """As the native module raises it when Rust code panics."""


@pytest.fixture
def log() -> Iterator[list[str]]:
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("scheduler", "worker", "shield"):
        logging.getLogger(f"vllm.aibrix_connector.{name}").addHandler(handler)
    yield seen
    for name in ("scheduler", "worker", "shield"):
        logging.getLogger(f"vllm.aibrix_connector.{name}").removeHandler(handler)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> Engine:
    return Engine(monkeypatch)


def raising(error: BaseException) -> Any:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
def test_what_was_computed_is_loaded(monkeypatch: pytest.MonkeyPatch, load_mode: str) -> None:
    engine = Engine(monkeypatch, load_mode=load_mode)
    engine.compute(request("a", 80))
    assert engine.pool.held() == [], "source blocks are let go of"
    table = engine.load(request("b", 80), 64)
    engine.settle()
    assert [engine.is_loaded(block, index) for index, block in enumerate(table)] == [True] * 4 + [False]
    assert engine.received == ({"b"} if load_mode == "async" else set())
    assert engine.errors == set()
    assert engine.internal_errors() == 0
    for side in (engine.down, engine.up):
        side.shutdown()


@pytest.mark.parametrize("runner", FULL_GRAPH)
def test_a_replayed_graph_finds_its_load_there(monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    engine = Engine(monkeypatch)
    engine.compute(request("a", 80))
    engine.context = FULL_GRAPH[runner]
    seen: list[bool] = []
    forward = engine.forward

    def watch() -> None:
        seen.append(engine.is_loaded(engine.next_block - 5, 0))
        forward()

    monkeypatch.setattr(engine, "forward", watch)
    table = engine.load(request("b", 80), 64)
    assert seen[-1], "before the forward pass"
    assert [engine.is_loaded(block, index) for index, block in enumerate(table)] == [True] * 4 + [False]
    assert engine.errors == set()
    # A step of a graph stores as well, when it is over.
    engine.compute(request("c", 80, block_hashes=[bytes([index, 9]) * 16 for index in range(5)]))
    assert engine.scheduling._planner.stats()["stored_blocks"] == 10
    assert engine.internal_errors() == 0


def test_layers_without_hooks_find_their_load_there(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    engine = Engine(monkeypatch, layers_without_hooks=1)
    engine.compute(request("a", 80))
    table = engine.load(request("b", 80), 64)
    assert not engine.up.has_connector_metadata(), "the other layers have nothing to do either"
    assert [engine.is_loaded(block, index) for index, block in enumerate(table)] == [True] * 4 + [False]
    assert engine.errors == set()
    assert engine.scheduling._planner.stats()["stored_blocks"] == 5


def test_speculative_decoding_loads_between_steps(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    engine = Engine(monkeypatch, speculative=True)
    assert log == ["load_mode: async instead of layerwise, because of speculative decoding"]
    engine.compute(request("a", 80))
    table = engine.load(request("b", 80), 64)
    engine.settle()
    assert engine.received == {"b"}
    assert [engine.is_loaded(block, index) for index, block in enumerate(table)] == [True] * 4 + [False]


def test_hooks_of_a_capture_touch_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured, and dummy steps run, between steps: a wait in a graph would be for ever."""
    engine.compute(request("a", 80))
    engine.load(request("b", 80), 64)
    engine.up.clear_connector_metadata()
    for method in ("wait_layer", "store_layer"):
        engine.side_of_worker()._store = Wrapped(engine.working._store, method, AssertionError("called"))
    for name, view in engine.views.items():
        engine.up.wait_for_layer_load(name)
        engine.up.save_kv_layer(name, view, None)
    assert engine.internal_errors() == 0


def test_the_engine_is_asked_for_the_layout_that_was_set(engine: Engine) -> None:
    assert Connector.get_required_kvcache_layout(engine.config) is None
    engine.config.kv_transfer_config.kv_connector_extra_config["kv_layout"] = "BLHNC"
    assert Connector.get_required_kvcache_layout(engine.config) == "BLHNC"
    engine.config.kv_transfer_config = None
    assert Connector.get_required_kvcache_layout(engine.config) is None


def test_the_scheduler_side_asks_for_recomputing(engine: Engine) -> None:
    assert engine.config.kv_transfer_config.kv_load_failure_policy == "recompute"
    assert engine.down.requires_kv_delivery is False


def test_source_blocks_are_held_while_a_job_reads_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[int]] = []
    absorb = engine.scheduling.absorb

    def watch(reports: WorkerReports) -> None:
        held.append(engine.pool.held())
        absorb(reports)

    monkeypatch.setattr(engine.scheduling, "absorb", watch)
    table = engine.compute(request("a", 64))
    assert table in held
    assert engine.pool.held() == []


@pytest.mark.parametrize(
    ("wish", "stored", "loaded"),
    [
        ({"skip_store": True}, 0, 0),
        ({"max_store_tokens": 40}, 2, 0),
        ({"max_load_tokens": 40}, 4, 32),
        ({"skip_load": True}, 4, 0),
        ({"max_load_tokens": "all", "skip_store": "no", "max_store_tokens": -3, "x": 1}, 4, 64),
        ("nonsense", 4, 64),
    ],
)
def test_requests_wish(engine: Engine, log: list[str], wish: Any, stored: int, loaded: int) -> None:
    params = {"kvcache": wish}
    engine.compute(request("a", 80, kv_transfer_params=params if "store" in str(wish) else None))
    found = engine.scheduling._planner.stats()["stored_blocks"]
    assert found == (5 if stored == 4 else stored)
    if loaded or "load" in str(wish):
        asked = request("b", 80, kv_transfer_params=params)
        engine.down.on_new_request(asked)
        assert engine.down.get_num_new_matched_tokens(asked, 0)[0] == loaded
    assert engine.internal_errors() == 0
    assert all("kv_transfer_params" in line and line.endswith("(said once)") for line in log)


@pytest.mark.parametrize(("own", "loaded"), [(16, 16), (32, 0), (48, 0)])
def test_a_limit_of_loading_counts_what_the_engine_holds(engine: Engine, own: int, loaded: int) -> None:
    engine.compute(request("a", 80))
    asked = request("b", 80, kv_transfer_params={"kvcache": {"max_load_tokens": 40}})
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, own)[0] == loaded


@pytest.mark.parametrize("params", [5, "x", [1], {"kvcache": [1]}, {"kvcache": {"skip_load": {}}}, {1: 2}])
def test_wrong_wishes_are_said_once_and_ignored(engine: Engine, log: list[str], params: Any) -> None:
    for number in range(3):
        engine.compute(request(f"r{number}", 16, kv_transfer_params=params))
        engine.down.request_finished(request(f"r{number}", 16), [])
        engine.down.reset_cache()
    assert len(log) <= 1
    assert engine.internal_errors() == 0


def test_half_a_surrogate_pair_in_a_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, key_source="tokens")
    engine.compute(request("a", 80, cache_salt="\ud800"))
    other = request("b", 80, cache_salt="\ud801")
    engine.down.on_new_request(other)
    assert engine.down.get_num_new_matched_tokens(other, 0) == (0, False)
    engine.load(request("c", 80, cache_salt="\ud800"), 64)
    assert engine.internal_errors() == 0


def test_block_tables_of_0_29() -> None:
    state = SimpleNamespace(block_ids={"a": ([1, 2],)})
    assert scheduler._block_tables(state, "a") == ([1, 2],)
    assert scheduler._block_tables(state, "b") is None
    assert scheduler._block_tables(None, "a") is None


def test_steps_without_work_do_not_reach_the_worker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("a", 80)
    table = engine.compute(asked)
    engine.quieten()

    touched: list[str] = []
    for name in ("start_loads", "end_step", "received", "load_errors", "take_reports", "take_stats"):
        monkeypatch.setattr(engine.working, name, lambda name=name: touched.append(name))
    engine.step({"a": (asked.num_tokens + 1, table)})
    assert touched == []
    # vLLM may add to what it is given.
    first = engine.up.get_block_ids_with_load_errors()
    first.add(1)
    assert engine.up.get_block_ids_with_load_errors() == set()
    monkeypatch.undo()

    # Work ends the quiet at once.
    engine.load(request("b", 80), 64)
    assert not engine.up.quiet


def test_reset_forgets(engine: Engine) -> None:
    engine.compute(request("a", 80))
    assert engine.down.reset_cache() is True
    engine.settle()
    asked = request("b", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False)


# What fails on the scheduler side.


@pytest.mark.parametrize("method", ["add_request", "extend_hashes", "lookup"])
def test_a_request_that_cannot_be_asked_about_is_computed(engine: Engine, log: list[str], method: str) -> None:
    engine.compute(request("a", 80))
    planner = engine.scheduling._planner
    engine.side_of_scheduler()._planner = Wrapped(planner, method, RuntimeError("broken"))
    asked = request("b", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False)
    engine.down.update_state_after_alloc(asked, blocks([10, 11, 12, 13, 14]), 0)
    engine.step({"b": (80, [10, 11, 12, 13, 14])})
    engine.side_of_scheduler()._planner = planner
    assert engine.internal_errors() == 1
    engine.down.request_finished(asked, [])
    engine.settle()
    engine.load(request("c", 80), 64)
    assert engine.errors == set(), "other requests go on"


@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
def test_a_promise_that_cannot_be_kept_is_reported(monkeypatch: pytest.MonkeyPatch, load_mode: str) -> None:
    engine = Engine(monkeypatch, load_mode=load_mode)
    engine.compute(request("a", 80))
    planner = engine.scheduling._planner
    engine.side_of_scheduler()._planner = Wrapped(planner, "commit_load", OverflowError("broken"))
    table = engine.load(request("b", 80), 64)
    assert engine.errors == set(table[:4])
    assert engine.received == ({"b"} if load_mode == "async" else set())


def test_a_block_table_that_cannot_be_read_stops_the_engine(engine: Engine) -> None:
    """It counts on tokens in blocks that nobody can name: better no answer than a wrong one."""
    engine.compute(request("a", 80))
    asked = request("b", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0)[0] == 64
    with pytest.raises(ZeroDivisionError):
        engine.down.update_state_after_alloc(asked, SimpleNamespace(get_block_ids=raising(ZeroDivisionError())), 64)


def test_one_request_that_cannot_be_offloaded_costs_the_others_nothing(engine: Engine) -> None:
    for name in ("a", "b"):
        asked = request(name, 80, block_hashes=[name.encode() * 32] * 5)
        engine.down.on_new_request(asked)
        engine.down.get_num_new_matched_tokens(asked, 0)
        engine.down.update_state_after_alloc(asked, blocks([]), 0)
    engine.step({"a": (80, ["no", "block"]), "b": (80, [6, 7, 8, 9, 10])})  # type: ignore[list-item]
    engine.settle()
    assert engine.scheduling._planner.stats()["stored_blocks"] > 0
    assert engine.internal_errors() == 1


def test_blocks_that_cannot_be_held_are_read_within_the_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    metas: list[metadata.StepMetadata] = []
    begin = engine.working.begin_step

    def watch(meta: metadata.StepMetadata) -> None:
        metas.append(meta)
        begin(meta)

    monkeypatch.setattr(engine.working, "begin_step", watch)
    monkeypatch.setattr(engine.pool, "touch", raising(RuntimeError("no")))
    engine.compute(request("a", 80))
    assert [meta.finish_in_step for meta in metas if meta.plan] == [True]
    assert engine.pool.held() == []


def test_a_lost_report_retires_the_cache_and_frees_the_blocks(
    engine: Engine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = engine.scheduling._planner
    engine.side_of_scheduler()._planner = Wrapped(planner, "absorb", ValueError("a report of 0 bytes"))
    engine.compute(request("a", 80))
    assert engine.pool.held() == [], "the ranks have said that nothing is in flight"
    assert any("switched off" in line for line in log)
    asked = request("b", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False)
    assert not engine.down.has_pending_push_work()


def test_a_panic_retires_the_cache(engine: Engine) -> None:
    engine.compute(request("a", 80))
    planner = engine.scheduling._planner
    engine.side_of_scheduler()._planner = Wrapped(planner, "take_plan", PanicException("index out of bounds"))
    asked = request("b", 80)
    table = [20, 21, 22, 23, 24]
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0)[0] == 64
    engine.down.update_state_after_alloc(asked, blocks(table), 64)
    engine.step()
    assert engine.errors == set(table[:4]), "what was promised is computed instead"
    engine.side_of_scheduler()._planner = planner
    engine.settle()
    assert engine.down.reset_cache() is True


def test_a_reset_that_fails_says_so_and_serves_nothing(engine: Engine) -> None:
    engine.compute(request("a", 80))
    engine.side_of_scheduler()._planner = Wrapped(engine.scheduling._planner, "reset", RuntimeError("broken"))
    assert engine.down.reset_cache() is False
    asked = request("b", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False)


# What fails on the worker side.


@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
@pytest.mark.parametrize(
    "method",
    ["begin_step", "start_loads", "wait_layer", "end_step", "take_received", "take_load_errors", "take_report"],
)
@pytest.mark.parametrize("error", [RuntimeError("broken"), PanicException("index out of bounds")])
def test_a_worker_that_fails_loses_what_was_promised_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, load_mode: str, method: str, error: BaseException
) -> None:
    if method == "wait_layer" and load_mode == "async":
        pytest.skip("no layer is waited for")
    if method == "take_received" and load_mode == "layerwise":
        pytest.skip("no request is waited for")
    engine = Engine(monkeypatch, load_mode=load_mode)
    engine.compute(request("a", 80))
    engine.side_of_worker()._store = Wrapped(engine.working._store, method, error)
    table = engine.load(request("b", 80), 64)
    done_before = method in ("take_report",) or (method == "take_load_errors" and load_mode == "async")
    if not done_before:
        assert engine.errors >= set(table[:4])
    if load_mode == "async":
        engine.step()
        assert engine.received == {"b"}
    engine.settle()
    assert engine.internal_errors() >= 1
    assert engine.pool.held() == []
    asked = request("c", 80)
    engine.down.on_new_request(asked)
    assert engine.down.get_num_new_matched_tokens(asked, 0) == (0, False), "both sides have given up"
    engine.step({"c": (80, [30, 31, 32, 33, 34])})


@pytest.mark.parametrize("method", ["wait_layer", "store_layer"])
def test_a_request_to_end_passes_the_layer_hooks(engine: Engine, method: str) -> None:
    engine.compute(request("a", 80))
    engine.side_of_worker()._store = Wrapped(engine.working._store, method, KeyboardInterrupt())
    other = request("c", 80, block_hashes=[b"c" * 32] * 5)
    step = {"wait_layer": lambda: engine.load(request("b", 80), 64), "store_layer": lambda: engine.compute(other)}
    with pytest.raises(KeyboardInterrupt):
        step[method]()


def test_a_save_that_fails_leaves_no_block_held(engine: Engine) -> None:
    engine.side_of_worker()._store = Wrapped(engine.working._store, "store_layer", RuntimeError("broken"))
    engine.compute(request("a", 80))
    assert engine.pool.held() == []
    assert engine.internal_errors() == 1


def test_copies_that_cannot_be_stopped_stop_the_engine(engine: Engine) -> None:
    """Nothing is reported while a copy may still touch the engine's memory."""
    broken = Wrapped(engine.working._store, "begin_step", RuntimeError("broken"))
    engine.side_of_worker()._store = Wrapped(broken, "close", RuntimeError("stuck"))
    asked = request("a", 80)
    engine.down.on_new_request(asked)
    engine.down.get_num_new_matched_tokens(asked, 0)
    engine.down.update_state_after_alloc(asked, blocks([]), 0)
    with pytest.raises(RuntimeError, match="stuck"):
        engine.step({"a": (80, [1, 2, 3, 4, 5])})


def test_errors_of_configuration_stay_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'capacity'"):
        Engine(monkeypatch, capcity="1GiB")
    with pytest.raises(ValueError, match="unknown eviction policy `lruu`"):
        Engine(monkeypatch, eviction="lruu")
    with pytest.raises(ValueError, match=r"is below one slot of .* set capacity to at least"):
        Engine(monkeypatch, capacity=1)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"File exists .* it is no directory: set slab_dir to one"):
        Engine(monkeypatch, slab_dir=str(file))


@pytest.mark.parametrize(
    "hook", sorted(name for name in vars(Connector) if hasattr(vars(Connector)[name], "__wrapped__"))
)
def test_every_shielded_hook_is_one_of_vllms_or_private(hook: str) -> None:
    assert hook.startswith("_") or hasattr(KVConnectorBase_V1, hook)


def test_every_hook_of_a_request_or_step_is_shielded() -> None:
    """A hook that is added later has to decide what it does when it fails."""
    exempt = {
        "__init__": "configuration",
        "register_kv_caches": "configuration",
        "requires_piecewise_for_cudagraph": "configuration",
        "get_required_kvcache_layout": "configuration",
        "requires_kv_delivery": "a constant",
        "build_kv_connector_stats": "a constructor",
        "build_prom_metrics": "registration in the front end",
        "request_finished_all_groups": "calls request_finished",
        "bind_connector_metadata": "calls _begin_step",
        "get_transfer_results": "calls get_finished",
        "poison": "recovery",
        "has_connector_metadata": "an attribute",
        "wait_for_layer_load": "shielded in place",
        "save_kv_layer": "shielded in place",
        "_layer_failed": "recovery",
        "_recompute_on_failure": "configuration",
    }
    for name, value in vars(Connector).items():
        if callable(value) or isinstance(value, classmethod | property):
            assert name in exempt or hasattr(value, "__wrapped__"), name


def test_reports_of_ranks_add_up() -> None:
    both = WorkerReports([b"a"], False, 1).aggregate(WorkerReports([b"b"], True, 1))
    assert both == WorkerReports([b"a", b"b"], True, 2)


def test_the_name_of_aibrix_is_an_alias() -> None:
    assert issubclass(connector_module.OffloadingConnectorV1Type3, Connector)


class Wrapped:
    """A native object one method of which fails."""

    def __init__(self, inner: Any, method: str, error: BaseException) -> None:
        self._inner, self._method, self._error = inner, method, error

    def __getattr__(self, name: str) -> Any:
        return raising(self._error) if name == self._method else getattr(self._inner, name)

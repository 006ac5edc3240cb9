"""What can be seen from outside: KV events, metrics, statistics, and a timeline of copies behind compute."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

L1 = {"capacity": "64MiB"}
PROMPTS = [prompt(seed, 300) for seed in range(2)]


def _events(options: EngineOptions) -> dict[str, Any]:
    import time

    import msgspec
    import zmq
    from vllm.distributed.kv_events import KVEventBatch

    from tests.e2e.engine import Engine

    endpoint = options.more["kv_events_config"].endpoint
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt_string(zmq.SUBSCRIBE, "")
        socket.connect(endpoint)
        with Engine(options) as engine:
            time.sleep(0.5)
            for seed in range(8):
                engine.generate([prompt(seed, 300)], tokens=4)
            engine.reset_prefix_cache(connector=True)
            engine.generate([prompt(9, 40)], tokens=4)
            decoder, events = msgspec.msgpack.Decoder(type=KVEventBatch), []
            while socket.poll(1000):
                _, _, payload = socket.recv_multipart()
                events.extend(decoder.decode(payload).events)
            plain: list[dict[str, Any]] = []
            for event in events:
                if getattr(event, "medium", None) == "CPU":
                    fields = msgspec.to_builtins(event)
                    plain.append({"kind": type(event).__name__, "fields": fields if isinstance(fields, dict) else {}})
                    plain[-1]["hashes"] = [str(block) for block in event.block_hashes]
                    if plain[-1]["kind"] == "BlockStored":
                        plain[-1] |= {
                            "tokens": list(event.token_ids),
                            "parent": None if event.parent_block_hash is None else str(event.parent_block_hash),
                            "block_size": event.block_size,
                        }
            return {"events": plain}


@pytest.mark.matrix
def test_kv_events_say_what_l1_holds(scenarios: Scenarios, tmp_path: Path) -> None:
    from vllm.config import KVEventsConfig

    endpoint = f"ipc://{tmp_path}/events"
    config = KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint)
    # Eight slots: storing eight prompts of two slots evicts.
    options = EngineOptions(connector={"capacity": "2MiB"}, more={"kv_events_config": config})
    events = scenarios.run(_events, options)["events"]
    held: dict[str, list[int]] = {}
    stored = [event for event in events if event["kind"] == "BlockStored"]
    removed = [event for event in events if event["kind"] == "BlockRemoved"]
    assert len(stored) >= 10
    assert removed
    for event in events:
        if event["kind"] == "BlockStored":
            assert event["block_size"] == len(event["tokens"]) == 128
            (block,) = event["hashes"]
            assert block not in held, "stored twice without being removed"
            held[block] = event["tokens"]
        else:
            for block in event["hashes"]:
                assert held.pop(block, None) is not None, "removed without having been stored"
        assert len(held) <= 8
    assert not held, "a reset removes everything"
    first = [event for event in stored if event["tokens"] == prompt(0, 300)[:128]]
    second = [event for event in stored if event["tokens"] == prompt(0, 300)[128:256]]
    assert first[0]["parent"] is None
    assert second[0]["parent"] == first[0]["hashes"][0]


def _timeline(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import worker_side

    with Engine(options) as engine:
        engine.generate([prompt(3, 1000)], tokens=1)
        engine.forget()
        before = len(worker_side(engine)._store.timeline())
        engine.generate([prompt(3, 1000)], tokens=1)
        rows = worker_side(engine)._store.timeline()
        return {"stores": rows[:before], "loads": rows[before:]}


def _spans(rows: list[list[Any]], what: str) -> list[tuple[int, int, int]]:
    return [(layer, began, ended) for kind, layer, began, ended in rows if kind == what]


@pytest.mark.matrix
def test_copies_run_beside_the_layers(scenarios: Scenarios) -> None:
    """A layer is computed while the next one is loaded and the one before is offloaded."""
    drill = "timeline,copy_bytes_per_s=1e8"
    connector = L1 | {"load_mode": "layerwise", "layers_ahead": 1, "drill": drill}
    run = scenarios.run(_timeline, EngineOptions(connector=connector, step_tokens_max=512))
    # Offloads: layer i is copied after it was computed, while a later layer is computed.
    computed = _spans(run["stores"], "computed")
    offloads = _spans(run["stores"], "offload")
    beside = 0
    for layer, began, _ in offloads:
        done = [at for index, at, _ in computed if index == layer and at <= began]
        assert done, f"layer {layer} was copied before it was computed"
        following = [at for index, at, _ in computed if index == layer + 1 and at > done[-1]]
        beside += bool(following) and began < following[0]
    # Two steps of four layers: all but the last layer of each have a layer to hide behind.
    assert len(offloads) == 8
    assert beside >= 4, "offloads did not run while the next layer was computed"
    # Loads: the wait for layer i ends after its copy, and later layers are copied before it is waited for.
    waits = {layer: (began, ended) for layer, began, ended in _spans(run["loads"], "wait")}
    loads = {layer: (began, ended) for layer, began, ended in _spans(run["loads"], "load")}
    assert set(loads) == {0, 1, 2, 3}
    for layer, (_, ended) in loads.items():
        assert ended <= waits[layer][1], f"layer {layer} was used before it was loaded"
    ahead = [layer for layer in (1, 2, 3) if loads[layer][0] < waits[layer][0]]
    assert ahead, "no layer was copied while the one before was computed"


def _statistics(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    with Engine(options) as engine:
        engine.generate(PROMPTS)
        engine.forget()
        engine.generate(PROMPTS)
        return engine.metrics("vllm:")


@pytest.mark.matrix
def test_prometheus_metrics_count(scenarios: Scenarios) -> None:
    metrics = scenarios.run(_statistics, EngineOptions(connector=L1))
    assert metrics["vllm:external_prefix_cache_hits"] == 2 * 256
    ours = {name.removeprefix("vllm:kvcache_"): value for name, value in metrics.items() if ":kvcache_" in name}
    assert ours["hits"] == 2
    assert ours["hit_tokens"] == 2 * 256
    assert ours["queried_tokens"] == 4 * 300
    assert ours["stored_blocks"] == 4
    assert ours["slots_ready"] == 4
    assert ours["misses"] == 2
    assert ours["missed_tokens"] == 2 * 300
    assert ours["loaded_bytes"] == 4 * 262144
    assert ours["offloaded_bytes"] == 4 * 262144
    assert 0.4 < ours["hit_ratio"] < 0.45

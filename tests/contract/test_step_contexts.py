"""Which steps call the layer hooks, as vLLM's own model runners begin them.

A load that nobody waits for is read as garbage, so this is asked of vLLM's code rather than of our reading of it: both
runners begin a step here, with a connector that notes the context it is given.
"""

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aibrix_connector import layer_hooks
from vllm import forward_context
from vllm.config import CUDAGraphMode
from vllm.model_executor.layers import attention
from vllm.model_executor.layers.attention import Attention, MLAAttention, mla_attention
from vllm.model_executor.layers.attention import attention as common_attention
from vllm.v1.worker import kv_connector_model_runner_mixin as first_runner
from vllm.v1.worker.gpu import kv_connector as second_runner

pytestmark = pytest.mark.matrix

CONFIG: Any = SimpleNamespace(
    parallel_config=SimpleNamespace(
        data_parallel_size=1, use_sequence_parallel_moe=False, is_moe_model=False, use_ubatching=False
    ),
    compilation_config=SimpleNamespace(fast_moe_cold_start=False, static_forward_context={}),
    speculative_config=None,
)
METADATA = {"layers.0": object()}


class Recorder:
    """A connector that notes whether the hooks would fire, each time that loads are started."""

    def __init__(self) -> None:
        self.fires: list[bool] = []

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self.fires.append(layer_hooks.fire_in(forward_context))

    def get_finished(self, finished: set[str]) -> tuple[None, None]:
        return None, None

    def get_transfer_results(self, finished: set[str]) -> Any:
        return SimpleNamespace(finished_sending=None, finished_recving=None, failed_recving=None)

    def __getattr__(self, name: str) -> Any:
        """Every other hook."""
        return lambda *_: None


@contextlib.contextmanager
def context(metadata: Any, mode: CUDAGraphMode) -> Iterator[None]:
    with forward_context.set_forward_context(metadata, CONFIG, cudagraph_runtime_mode=mode):
        yield


def output(sync: bool = True) -> Any:
    return SimpleNamespace(has_sync_kv_loads=sync, kv_connector_metadata=object(), finished_req_ids=set())


MODES = [(CUDAGraphMode.NONE, True), (CUDAGraphMode.PIECEWISE, True), (CUDAGraphMode.FULL, False)]


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(first_runner, "get_kv_transfer_group", lambda: recorder)
    monkeypatch.setattr(first_runner, "KVConnectorBase", Recorder)
    return recorder


@pytest.mark.parametrize(("mode", "fires"), MODES)
def test_the_first_runner(first: Recorder, mode: CUDAGraphMode, fires: bool) -> None:
    with context(METADATA, mode), first_runner.KVConnectorModelRunnerMixin._get_kv_connector_output(output()):
        assert first.fires == [fires], "before the forward pass"


def test_the_first_runner_without_a_forward_pass(first: Recorder) -> None:
    first_runner.KVConnectorModelRunnerMixin.kv_connector_no_forward(output(), CONFIG)
    assert first.fires == [False]


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Recorder]:
    recorder = Recorder()
    runner: Any = second_runner.ActiveKVConnector.__new__(second_runner.ActiveKVConnector)
    runner.vllm_config, runner.kv_connector, runner._disabled = CONFIG, recorder, False
    runner._pending_load_kwargs, runner._pending_load_start = None, False
    return runner, recorder


@pytest.mark.parametrize("mode", [CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE])
def test_the_second_runner(second: tuple[Any, Recorder], mode: CUDAGraphMode) -> None:
    runner, recorder = second
    with context(METADATA, mode):
        runner.pre_forward(output())
    assert recorder.fires == [True]


def test_the_second_runner_begins_a_full_graph_outside_of_any_context(second: tuple[Any, Recorder]) -> None:
    runner, recorder = second
    runner.pre_forward(output())
    assert recorder.fires == [False]


def test_the_second_runner_begins_full_graphs_as_this_test_does() -> None:
    """A full graph's loads are started before `set_forward_context`, other steps' within it."""
    from vllm.v1.worker.gpu import model_runner

    source = inspect.getsource(model_runner.GPUModelRunner.execute_model)
    graph = source.index("cg_mode == CUDAGraphMode.FULL:\n            # Use explicit cudagraph replay")
    first_begin = source.index(".pre_forward(", graph)
    replay = source.index(".run_fullgraph(", graph)
    opened = source.index("set_forward_context(", graph)
    second_begin = source.index(".pre_forward(", first_begin + 1)
    assert graph < first_begin < replay < opened < second_begin
    assert source.count(".pre_forward(") == 2


def test_steps_without_loads_start_them_after_the_forward_pass(second: tuple[Any, Recorder]) -> None:
    runner, recorder = second
    with context(METADATA, CUDAGraphMode.NONE):
        runner.pre_forward(output(sync=False))
    assert recorder.fires == []


def test_hooks_are_called_by_two_operations_and_outside_of_captured_graphs() -> None:
    for operation in (
        common_attention.unified_attention_with_output,
        mla_attention.unified_mla_attention_with_output,
    ):
        assert hasattr(operation, "__wrapped__")
    for module in (common_attention, mla_attention):
        source = inspect.getsource(module)
        assert "@eager_break_during_capture\n@maybe_transfer_kv_layer" in source


def bare(kind: Any) -> Any:
    return kind.__new__(kind)


def test_layers_that_call_the_hooks() -> None:
    from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache

    assert layer_hooks.calls_hooks(bare(Attention))
    assert layer_hooks.calls_hooks(bare(MLAAttention))
    assert not layer_hooks.calls_hooks(bare(DeepseekV32IndexerCache))
    assert not layer_hooks.calls_hooks(None)

    class Own(Attention):
        def forward(self, *_: Any) -> None:
            """A model's own attention."""

    assert not layer_hooks.calls_hooks(bare(Own))
    direct = bare(MLAAttention)
    object.__setattr__(direct, "use_direct_call", True)
    assert not layer_hooks.calls_hooks(direct)


def test_all_attention_layers_of_vllm_go_through_the_operations() -> None:
    """Those that inherit, that is: a `forward` of their own must end in one that does."""
    assert "unified_attention_with_output" in inspect.getsource(Attention.forward)
    assert "unified_mla_attention_with_output" in inspect.getsource(MLAAttention.forward)
    for name in attention.__all__:
        layer = getattr(attention, name)
        if inspect.isclass(layer) and issubclass(layer, Attention | MLAAttention):
            own = "forward" in vars(layer) and layer not in (Attention, MLAAttention)
            assert not own or "super().forward(" in inspect.getsource(layer), name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"speculative_config": object()}, "draft layers of speculative decoding run after the forward pass"),
        (
            {"parallel_config": SimpleNamespace(use_ubatching=True)},
            "a step is computed in several micro-batches",
        ),
        (
            {"compilation_config": SimpleNamespace(static_forward_context={"a": bare(Attention), "b": 5})},
            "layer b (int) does not call them",
        ),
    ],
)
def test_engines_without_reliable_hooks(change: dict[str, Any], reason: str | None) -> None:
    layers = {"a": bare(Attention), "b": bare(MLAAttention)}
    compilation = SimpleNamespace(static_forward_context=layers)
    config: Any = SimpleNamespace(**{**vars(CONFIG), "compilation_config": compilation, **change})
    assert layer_hooks.why_missing(config, layers) == reason


def test_micro_batches_have_a_name() -> None:
    from vllm.config import ParallelConfig

    assert isinstance(inspect.getattr_static(ParallelConfig, "use_ubatching"), property)

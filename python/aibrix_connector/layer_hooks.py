"""Whether the engine's layers say when they begin and end, in an engine and in a step.

vLLM calls ``wait_for_layer_load`` and ``save_kv_layer`` from within two operations, those of its common attention and
its latent attention. Where these are not all there is, or not what runs, a load is ordered before the whole forward
pass and an offload after it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext

_OWN_LAYERS = "vllm.model_executor.layers."
"""Where a layer's `forward` must come from: the attention that some models bring along calls no hooks."""


def why_missing(config: "VllmConfig", layers: Iterable[str]) -> str | None:
    """Returns why an engine's layer hooks cannot be relied on in any step, or None if they can.

    Args:
        config: The engine's configuration.
        layers: Names of all layers whose KV cache is stored.
    """
    if config.speculative_config is not None:
        # Its layers have numbers of their own, run after all others, and may be in a graph when these are not.
        return "draft layers of speculative decoding run after the forward pass"
    if config.parallel_config.use_ubatching:
        # Each hook is called from two threads, and the first call comes when half of the layer's tokens are there.
        return "a step is computed in several micro-batches"
    known = config.compilation_config.static_forward_context
    for name in layers:
        if not calls_hooks(known.get(name)):
            return f"layer {name} ({type(known.get(name)).__name__}) does not call them"
    return None


def calls_hooks(layer: object) -> bool:
    """Whether a layer's `forward` goes through one of the two operations that call the hooks."""
    from vllm.model_executor.layers.attention import Attention, MLAAttention

    if not isinstance(layer, Attention | MLAAttention):
        return False
    # Where the operation cannot be opaque to a compiler, latent attention does without it.
    skipped = isinstance(layer, MLAAttention) and getattr(layer, "use_direct_call", False)
    return type(layer).forward.__module__.startswith(_OWN_LAYERS) and not skipped


def fire_in(forward_context: "ForwardContext") -> bool:
    """Whether the hooks fire in the forward pass of this context.

    A replayed graph of a whole step calls no Python. The first model runner says so in the context's mode. The second
    one starts loads of such a step in a context that was made for it, without attention metadata, as both do for steps
    without a forward pass; and a layer without metadata calls no hooks.
    """
    mode = getattr(forward_context.cudagraph_runtime_mode, "name", None)
    return bool(forward_context.attn_metadata) and mode != "FULL"

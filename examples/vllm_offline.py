"""vLLM with the connector, offline: the second run of a prompt loads its KV cache from host memory.

Usage: VLLM_CPU_KVCACHE_SPACE=4 python examples/vllm_offline.py MODEL [DIRECTORY]

Needs vLLM 0.29 to 0.33 with its CPU backend. The variable is the size of the engine's own KV cache in GiB: without it
vLLM takes nearly all of the memory. DIRECTORY is where the blocks are kept, ideally in shared memory; the default is
/dev/shm. They stay there: in a second start of this program the first run loads too.
"""

import sys

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

PROMPT = "The quick brown fox jumps over the lazy dog. " * 40


def main() -> None:
    llm = LLM(
        model=sys.argv[1],
        enforce_eager=True,
        disable_log_stats=False,
        kv_transfer_config=KVTransferConfig(
            kv_connector="AIBrixOffloadingConnectorV1Type3",
            kv_role="kv_both",
            kv_connector_extra_config={
                "capacity": "256MiB",
                "slab_dir": sys.argv[2] if len(sys.argv) > 2 else "/dev/shm",
            },
        ),
    )
    sampling = SamplingParams(temperature=0, max_tokens=20)
    hits_before = 0
    for run in ("first", "second"):
        (output,) = llm.generate([PROMPT], sampling, use_tqdm=False)
        hits = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:external_prefix_cache_hits")
        print(f"{run} run: {hits - hits_before} tokens loaded, {output.outputs[0].text!r}")
        hits_before = hits
        # Forget what vLLM itself keeps on the device, so that the second run has to come from host memory.
        if not llm.reset_prefix_cache():
            raise RuntimeError("vLLM still uses blocks, and did not forget them")


if __name__ == "__main__":
    main()

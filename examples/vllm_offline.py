"""vLLM with the connector, offline: the second run of a prompt loads its KV cache from host memory.

Usage: python examples/vllm_offline.py MODEL

Needs vLLM 0.29 to 0.33 with its CPU backend. With a slab directory a second start of this program loads too.
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
            kv_connector_extra_config={"capacity": "1GiB", "slab_dir": "/dev/shm"},
        ),
    )
    sampling = SamplingParams(temperature=0, max_tokens=20)
    for run in ("first", "second"):
        (output,) = llm.generate([PROMPT], sampling, use_tqdm=False)
        hits = {metric.name: metric.value for metric in llm.get_metrics() if "external_prefix_cache" in metric.name}
        print(f"{run} run: {output.outputs[0].text!r}, {hits}")
        # Forget what vLLM itself keeps on the device, so that the second run has to come from host memory.
        llm.reset_prefix_cache()


if __name__ == "__main__":
    main()

"""transformers' continuous batching on random weights: started by gpu_check.py, in a process.

python benchmarks/gpu_peer.py SHAPE BATCH PROMPT NEW FILE     writes tokens per second into FILE
"""

import os
import sys
import time
from pathlib import Path

import torch
import transformers
from gpu_parts import SHAPES, hf_config


def main() -> None:
    shape, (batch, prompt, new) = SHAPES[sys.argv[1]], map(int, sys.argv[2:5])
    config = transformers.AutoConfig.for_model("qwen2", **hf_config(shape))
    config._attn_implementation = "sdpa"
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    generation = transformers.GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )

    batching = transformers.ContinuousBatchingConfig(use_cuda_graph=True, use_async_batching=True)

    def speed(salt: int) -> float:
        ids = [[1 + (salt * 7919 + i * 911 + k * 31) % 40_000 for k in range(prompt)]
               for i in range(batch)]  # fmt: skip
        began = time.perf_counter()
        out = model.generate_batch(
            inputs=ids,
            generation_config=generation,
            continuous_batching_config=batching,
            progress_bar=False,
            persistent_manager=True,  # what it records is not recorded again in every round
        )
        seconds = time.perf_counter() - began
        made = sum(len(reply.generated_tokens) for reply in out.values())
        assert made == batch * new, f"{made} tokens instead of {batch * new}"
        return made / seconds

    speed(0)
    Path(sys.argv[5]).write_text(str(max(speed(1), speed(2))))
    os._exit(0)  # its manager's thread would go on


if __name__ == "__main__":
    main()

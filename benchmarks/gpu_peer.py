"""transformers' continuous batching on random weights: started by gpu_check.py, in a process.

python benchmarks/gpu_peer.py SHAPE BATCH PROMPT NEW FILE     writes tokens per second into FILE
"""

import sys
import time
from pathlib import Path

import torch
import transformers
from gpu_parts import SHAPES, hf_config


def main() -> None:
    shape, (batch, prompt, new) = SHAPES[sys.argv[1]], map(int, sys.argv[2:5])
    config = transformers.AutoConfig.for_model("qwen2", **hf_config(shape))
    config._attn_implementation = "sdpa_paged"
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    generation = transformers.GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )

    def speed(salt: int) -> float:
        ids = [[1 + (salt * 7919 + i * 911 + k * 31) % 40_000 for k in range(prompt)]
               for i in range(batch)]  # fmt: skip
        began = time.perf_counter()
        out = model.generate_batch(inputs=ids, generation_config=generation, progress_bar=False)
        seconds = time.perf_counter() - began
        made = sum(len(reply.generated_tokens) for reply in out.values())
        assert made == batch * new, f"{made} tokens instead of {batch * new}"
        return made / seconds

    speed(0)
    Path(sys.argv[5]).write_text(str(max(speed(1), speed(2))))


if __name__ == "__main__":
    main()

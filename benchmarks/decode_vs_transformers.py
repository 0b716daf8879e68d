"""Generation against transformers' `generate`: same weights, number type, threads, prompts, tokens.

    python benchmarks/decode_vs_transformers.py [--threads N] [--rounds N]

Both sides get token ids, prefill them and generate greedily, without stopping early. Tokens per
second count generated tokens over the whole call, prefill included, as a user waits for both.
"""

import time
from functools import partial

import torch
import transformers
from measure import add, add_machine, argument, in_turn

from ramify.srt.engine import Engine
from ramify.srt.weights.source import prepare

PROMPT, NEW = 128, 64
THREADS = argument("threads", 2)


def prompts(batch: int, salt: int) -> list[list[int]]:
    """Prompts without a common prefix, different in every round: nothing can be reused."""
    return [
        [1 + (salt * 7919 + i * 911 + k * 31) % 40_000 for k in range(PROMPT)] for i in range(batch)
    ]


def main() -> None:
    torch.set_num_threads(THREADS)
    add_machine()
    add("transformers", transformers.__version__)
    folder = prepare("smollm2")
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.bfloat16)
    peer.eval()
    salts = iter(range(10_000))
    with Engine("smollm2", dtype="bfloat16", threads=THREADS) as engine:

        def ours(batch: int) -> float:
            began = time.perf_counter()
            replies = engine.generate(
                input_ids=prompts(batch, next(salts)),
                sampling_params={"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True},
            )
            assert all(len(r["output_ids"]) == NEW for r in replies)
            return batch * NEW / (time.perf_counter() - began)

        def theirs(batch: int) -> float:
            ids = torch.tensor(prompts(batch, next(salts)))
            began = time.perf_counter()
            with torch.inference_mode():
                out = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=NEW,
                    max_new_tokens=NEW,
                    pad_token_id=0,
                )
            assert out.shape[1] == PROMPT + NEW
            return batch * NEW / (time.perf_counter() - began)

        for batch in (1, 16):
            for warm_up in (ours, theirs):
                warm_up(batch)
            a, b = in_turn(argument("rounds", 5), partial(ours, batch), partial(theirs, batch))
            add(f"batch {batch}: ramify, tokens/s", a)
            add(f"batch {batch}: transformers generate, tokens/s", b)
            add(f"batch {batch}: ratio", a / b)


if __name__ == "__main__":
    main()

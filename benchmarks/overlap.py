"""What it is worth to plan the next step while one is computed: overlap on against overlap off.

    python benchmarks/overlap.py [--threads N] [--rounds N]

Two engines in one process take turns; each batch is distinct prompts and a fixed number of tokens.
On a CPU planning and computing want the same cores, so the gain is at most the time of planning,
and a row computed for a request that has ended meanwhile is a loss.
"""

import time
from functools import partial

from measure import add, add_machine, argument, in_turn

from ramify.srt.engine import Engine

PROMPT, NEW = 64, 64
THREADS = argument("threads", 2)


def main() -> None:
    add_machine()
    salts = iter(range(10_000))

    def speed(engine: Engine, batch: int) -> float:
        salt = next(salts)
        ids = [
            [1 + (salt * 7919 + i * 911 + k * 31) % 40_000 for k in range(PROMPT)]
            for i in range(batch)
        ]
        began = time.perf_counter()
        engine.generate(
            input_ids=ids,
            sampling_params={"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True},
        )
        return batch * NEW / (time.perf_counter() - began)

    with (
        Engine("smollm2", threads=THREADS) as in_order,
        Engine("smollm2", threads=THREADS, overlap=True) as overlapped,
    ):
        for batch in (1, 8, 32):
            runs = [partial(speed, engine, batch) for engine in (overlapped, in_order)]
            for warm_up in runs:
                warm_up()
            on, off = in_turn(argument("rounds", 7), *runs)
            add(f"batch {batch}: tokens/s with overlap", on)
            add(f"batch {batch}: tokens/s without", off)
            add(f"batch {batch}: ratio", on / off)


if __name__ == "__main__":
    main()

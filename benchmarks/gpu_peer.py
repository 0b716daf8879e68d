"""transformers' continuous batching on random weights and the same requests as our engine.

python benchmarks/gpu_peer.py SHAPE FILE     started by gpu_check.py; writes figures into FILE

A process measures one workload, as what it keeps is sized for the first that it is given.
"""

import inspect
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_goals import TRANSFORMERS
from gpu_lines import Case, Figure, is_broken, run_cases
from gpu_shapes import SHAPES, WORKLOADS, Shape, Workload, hf_config, theirs, workload_name

FAST = {"use_cuda_graph": True, "use_async_batching": True}


class Peer:
    """A model of a shape, made when it is first asked for something."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        device: str = "cuda",
        workloads: Mapping[str, Workload] = WORKLOADS,
    ) -> None:
        self.name, self.shape, self.device, self.workloads = name, shape, device, workloads

    @cached_property
    def model(self) -> Any:
        config = transformers.AutoConfig.for_model("qwen2", **hf_config(self.shape))
        config._attn_implementation = "sdpa"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        with torch.device(self.device):
            made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        return made.eval()

    def cases(self) -> Iterator[Case]:
        for workload in self.workloads:
            name = theirs(workload_name(self.name, workload), TRANSFORMERS)
            yield Case(name, partial(self.measure, name, self.workloads[workload]))

    def measure(self, name: str, work: Workload) -> Iterator[Figure]:
        """With the options that should be fastest; with its own, and saying so, if those fail."""
        try:
            yield Figure(name, self.best(work, FAST), "tok/s")
        except Exception as error:
            if is_broken(str(error)):
                raise
            traceback.print_exc()
            self.__dict__.pop("model", None)
            yield Figure(name, self.best(work, {}), "tok/s, default options")

    def best(self, work: Workload, options: dict[str, Any]) -> float:
        """Of two rounds, after one in which it compiles and records what it will need."""
        return max([self.speed(work, salt, options) for salt in range(3)][1:])

    def speed(self, work: Workload, salt: int, options: dict[str, Any]) -> float:
        generation = transformers.GenerationConfig(
            max_new_tokens=work.new,
            min_new_tokens=work.new,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        generate = self.model.generate_batch
        known = inspect.signature(generate).parameters
        # what it records is not recorded again in every round
        kept = {"persistent_manager": True} if "persistent_manager" in known else {}
        began = time.perf_counter()
        out = generate(
            inputs=work.prompts(salt),
            generation_config=generation,
            continuous_batching_config=transformers.ContinuousBatchingConfig(**options),
            progress_bar=False,
            **kept,
        )
        seconds = time.perf_counter() - began
        made = sum(len(reply.generated_tokens) for reply in out.values())
        if made != work.requests * work.new:
            raise RuntimeError(f"{made} tokens instead of {work.requests * work.new}")
        return made / seconds


def main() -> None:
    name, path = sys.argv[1], Path(sys.argv[2])
    run_cases(Peer(name, SHAPES[name]).cases(), path, most=1)
    os._exit(0)  # its manager's thread would go on


if __name__ == "__main__":
    main()

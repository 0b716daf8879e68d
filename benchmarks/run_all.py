"""Run every benchmark, one after the other, on an otherwise quiet machine.

python benchmarks/run_all.py            print
python benchmarks/run_all.py --write    print, and keep the output in docs/benchmarks
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE.parent / "docs" / "benchmarks"
RUNS = (
    ("kernels_1_thread", "kernels.py", "1"),
    ("kernels_2_threads", "kernels.py", "2"),
    ("decode_vs_transformers", "decode_vs_transformers.py", "--threads", "2"),
    ("cache_policies", "cache_policies.py"),
    ("cache_scale", "cache_scale.py"),
    ("cache_tiers", "cache_tiers.py"),
    ("scheduler_scale", "scheduler_scale.py"),
    ("tokenization", "tokenization.py"),
    ("schemas", "schemas.py"),
    ("constrained_decoding", "constrained_decoding.py", "--threads", "2"),
    ("grammar_latency", "grammar_latency.py", "--threads", "2"),
    ("overlap", "overlap.py"),
    ("inter_token_latency", "inter_token_latency.py"),
    ("cache_overhead", "cache_overhead.py", "--threads", "2"),
    ("shared_prefix_http", "shared_prefix_http.py"),
)


def main() -> int:
    """Returns 1 when a benchmark failed."""
    failed = 0
    for name, script, *arguments in RUNS:
        print(f"--- {name}", flush=True)
        command = [sys.executable, str(HERE / script), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        failed |= done.returncode != 0
        if "--write" in sys.argv and done.returncode == 0:
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{name}.txt").write_text(f"$ {' '.join([script, *arguments])}\n{done.stdout}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

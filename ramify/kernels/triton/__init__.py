"""The operations as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and above.

Reading order: `launch` (what all of them share), `attention` and `merge`, `rope_cache`, `sampling`;
`linear` is for deterministic mode; `fp8`, `w4a16` and `moe` wait for models that use them. Nothing
outside this folder imports triton, and nothing does before the backend `triton` is asked for:
`sizes`, `tiles` and `tile_table`, which say what may be launched, do without it.
"""

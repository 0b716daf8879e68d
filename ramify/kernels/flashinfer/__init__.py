"""Attention through FlashInfer, an optional library: the other operations are Triton's.

`requests` says what the library is asked, `attention` asks it. Nothing outside this folder imports
flashinfer, and `dispatch` imports this folder only when the backend `flashinfer` is asked for.
"""

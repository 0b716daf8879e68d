"""The operations a model step is made of: one table (`ops`), an implementation per device.

Reading order: `shapes` (the axis legend), `ops` (the public table), `reference/attention` (what
attention means), `cpu/paged_attention.cpp` (how the CPU does it), `dispatch` (who is called).

This module stays a docstring, without a version: started from the repository root, Python may find
the folder under the bare name of an unrelated package, whose users look for that attribute.
"""

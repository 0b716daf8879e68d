"""The backend `triton` has every op of the table, called as its torch twin is."""

import inspect

from ramify.kernels.dispatch import TABLE, load_ops


def test_every_op_is_called_as_its_twin():
    ops, twins = load_ops("triton"), load_ops("reference")
    assert ops.backend == "triton"
    for name in TABLE:
        mine, twin = (inspect.signature(getattr(backend, name)) for backend in (ops, twins))
        assert mine == twin, name

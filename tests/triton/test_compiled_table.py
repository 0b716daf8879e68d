"""The backend `triton` has every op of the table, called as its torch twin is."""

import inspect

import pytest

from ramify.kernels.dispatch import TABLE, load_ops
from ramify.kernels.triton.tile_table import TileTable


@pytest.mark.parametrize("tiles_of", [None, TileTable().tiles_of])
def test_every_op_is_called_as_its_twin(tiles_of):
    ops, twins = load_ops("triton", tiles_of), load_ops("reference")
    assert ops.backend == "triton"
    for name in TABLE:
        mine, twin = (inspect.signature(getattr(backend, name)) for backend in (ops, twins))
        assert mine == twin, name


def test_tiles_are_for_triton_alone():
    with pytest.raises(ValueError, match="backend triton, not reference"):
        load_ops("reference", TileTable().tiles_of)

"""What the layers of a model are given in one step, the same for every layer."""

from dataclasses import dataclass

from torch import Tensor

from ramify.kernels.work_list import WorkList


@dataclass(frozen=True)
class StepInputs:
    """Tensors of one step. T is the number of rows: prefill and decode alike."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int32
    slots: Tensor  # [T] int64: where the row's key and value go, page * P + slot
    work: WorkList

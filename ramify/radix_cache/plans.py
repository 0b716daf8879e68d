"""What the deciding half asks the executing half to do: values, nothing but integers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy the first `n_slots` slots of page `source` to page `target`, in every layer.

    This is the copy-on-write of a partly matched page. It must be done before any row of the same
    step is computed.
    """

    source: int
    target: int
    n_slots: int

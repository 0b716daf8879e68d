"""The lazily corrected heap against the plain answer."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.srt.scheduling.lazy_heap import SLACK, LazyHeap

CHANGES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["put", "worse", "remove"]),
                             st.integers(0, 20)))  # fmt: skip


@given(CHANGES)
def test_the_first_is_the_smallest_whatever_changed_unseen(changes):
    """Keys that get smaller are put again; keys that get larger change behind the heap's back."""
    keys: dict[int, int] = {}
    heap = LazyHeap(lambda number: keys[number])
    for number, what, value in changes:
        if what == "put":
            keys[number] = value
            heap.put(number, number)
        elif number in keys and what == "worse":
            keys[number] += value
        elif number in keys:
            heap.remove(number)
            del keys[number]
        assert heap.first() == min(keys, key=lambda n: (keys[n], n), default=None)


def test_outdated_entries_do_not_pile_up():
    keys = dict.fromkeys(range(10), 0)
    heap = LazyHeap(lambda number: keys[number])
    for round_ in range(1000):
        for number in keys:
            keys[number] = -round_
            heap.put(number, number)
    assert len(heap._heap) <= 2 * len(keys) + SLACK + 1

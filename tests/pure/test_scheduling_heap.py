"""What the orders are built of: the lazily corrected heap, and the account of programs."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.srt.scheduling.lazy_heap import SLACK, LazyHeap
from ramify.srt.scheduling.order import PROGRAMS_REMEMBERED, Service

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


def test_programs_served_long_ago_are_forgotten():
    """A client may invent a name for every request; the memory for them is bounded."""
    service = Service()
    for name in range(PROGRAMS_REMEMBERED + 10):
        service.charge(name, 1)
        service.charge("busy", 1)
    assert service.of("busy") == PROGRAMS_REMEMBERED + 10
    assert (service.of(0), service.of(PROGRAMS_REMEMBERED)) == (0, 1)

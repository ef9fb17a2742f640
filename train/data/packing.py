"""Put samples together into sequences of a bounded length: best fit decreasing, window by window.

A few percent of the sequences stay empty, where padding to the longest wastes a quarter to a half.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

# Samples that are packed together. 125,000 of real lengths fill 98.7 %; by 1,000 98.5, by 100 96.9.
WINDOW = 10_000


def pack(
    lengths: Sequence[int], order: Iterable[int], capacity: int, window: int = WINDOW
) -> Iterator[list[int]]:
    """Yield sequences of indices into `lengths`, each of at most `capacity` tokens in all.

    Samples come in `order`, a window at a time: what is yielded depends on nothing that comes
    later. Within a window the longest come first, and each goes where it leaves the least room
    (Johnson 1973: at most 11/9 of the fewest sequences possible, and 6/9 of one more).
    """
    samples = iter(order)
    while chosen := list(itertools.islice(samples, window)):
        yield from _pack_window(lengths, chosen, capacity)


def _pack_window(lengths: Sequence[int], chosen: Sequence[int], capacity: int) -> list[list[int]]:
    # Room left in each sequence, least first, and their samples in the same order.
    rooms: list[int] = []
    contents: list[list[int]] = []
    for index in sorted(chosen, key=lambda index: -lengths[index]):
        length = lengths[index]
        assert 0 < length <= capacity
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room, content = rooms.pop(place) - length, contents.pop(place)
        else:
            room, content = capacity - length, []
        content.append(index)
        place = bisect_left(rooms, room)
        rooms.insert(place, room)
        contents.insert(place, content)
    return contents

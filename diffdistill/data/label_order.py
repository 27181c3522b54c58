"""Chooses labels for generated images, with the same frequencies as the data.

With n_c images of class c among N, the first k labels hold class c

  x_c(k) times, with |x_c(k) - k n_c / N| < 1, for every k and every c.

So any number of generated images has the class proportions of the data, and
nothing is random. Label j of class c may come at positions floor(j N / n_c) + 1
to ceil((j + 1) N / n_c), counted from 1. Among the classes that may come next,
the rule takes the class with the earliest last position (Baruah et al. 1996:
such an order exists, and this rule finds it). Classes of equal size take turns:
image i has class i % C. After N labels the order repeats.
"""

import functools
import heapq
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# This name of the rule is stored with labels that the rule has chosen.
RULE = "as frequent as in the data, evenly spread"


def labels_of(
  counts: Sequence[int], first: int, count: int
) -> Int[np.ndarray, " count"]:
  """Returns the labels of images first, ..., first + count - 1, as int32.

  Args:
    counts: the number of images of each class; a class without images gets no
      label.
    first: the number of the first image.
    count: the number of labels.

  Raises:
    ValueError: if no class has an image, or a count is negative.
  """
  if not counts or min(counts) < 0 or not any(counts):
    raise ValueError(
      f"class counts are {tuple(counts)}; pass one count of 0 or more for each"
      " class, and one class with images"
    )
  divisor = math.gcd(*counts)
  reduced = tuple(n // divisor for n in counts)
  period = sum(reduced)
  # Round the length up to a power of two, so that the cache of `_order` is hit
  # often.
  needed = 1 << (max(first + count, 1) - 1).bit_length()
  order = _order(reduced, min(needed, period))
  return order[np.arange(first, first + count) % period]


def abbreviated(items: Sequence[object], most: int = 12) -> str:
  """Writes items in one line; of many, the first ones and the number of all."""
  shown = ", ".join(map(str, items[:most]))
  if len(items) <= most:
    return shown
  return f"{shown}, ... ({len(items):,} in all)"


@functools.lru_cache(maxsize=4)
def _order(counts: tuple[int, ...], size: int) -> Int[np.ndarray, " size"]:
  """Returns the first `size` labels of the order, which then repeats."""
  total = sum(counts)
  # `waiting` has (first position of the next label, class) for classes that
  # may not come yet; `ready` has (last position of the next label, class) for
  # classes that may come.
  waiting = [(1, label) for label, n in enumerate(counts) if n]
  ready: list[tuple[int, int]] = []
  placed = [0] * len(counts)
  order = np.empty(size, np.int32)
  for position in range(1, size + 1):
    while waiting and waiting[0][0] <= position:
      _, label = heapq.heappop(waiting)
      last = -(-(placed[label] + 1) * total // counts[label])
      heapq.heappush(ready, (last, label))
    _, label = heapq.heappop(ready)
    order[position - 1] = label
    placed[label] += 1
    if placed[label] < counts[label]:
      following = placed[label] * total // counts[label] + 1
      heapq.heappush(waiting, (following, label))
  order.flags.writeable = False
  return order

"""Computes the shortest possible time of a program on a chip."""

import dataclasses
from collections.abc import Iterable

from diffdistill.planning.chips import Chip
from diffdistill.planning.compiled import Compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """The seconds of one run if each resource were the only limit.

  Args:
    compute: the operations of matrix products and convolutions, divided by the
      chip's peak speed.
    memory: the traffic with the chip's memory, divided by its bandwidth.
    network: the bytes of messages, divided by the bandwidth of the chip's links
      within a slice.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """The largest of the three limits, as if all three overlapped perfectly."""
    return max(self.compute, self.memory, self.network)

  @property
  def in_turn(self) -> float:
    """The sum of the three limits, as if nothing overlapped.

    A real program overlaps some of its work, but reaches no limit, so this is
    nearer to its time than `seconds`.
    """
    return self.compute + self.memory + self.network

  @property
  def bound(self) -> str:
    """The name of the largest limit."""
    times = dataclasses.asdict(self)
    return max(times, key=times.__getitem__)


def roofline(flops: float, compiled: Compiled, chip: Chip) -> Roofline:
  """Returns the roofline of one run, with `flops` operations on one chip."""
  sent = sum(c.sent for c in compiled.collectives.values())
  return Roofline(
    compute=flops / chip.flops,
    memory=compiled.traffic / chip.memory_bandwidth,
    network=sent / chip.network_bandwidth,
  )


def total(hours: Iterable[float | None]) -> float | None:
  """Adds up hours; None if some are unknown."""
  known = list(hours)
  return None if None in known else sum(h for h in known if h is not None)

"""The least time that a program can take on a chip."""

import dataclasses

from diffdistill.planning.chips import Chip
from diffdistill.planning.compiled import Compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds of one run, were each the only limit.

  Args:
    compute: products, over the chip's peak.
    memory: traffic with the chip's memory, over its bandwidth.
    network: messages, over what the chip's links carry within a slice.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """The largest of them, as if they overlapped perfectly."""
    return max(self.compute, self.memory, self.network)

  @property
  def bound(self) -> str:
    """Which of them it is."""
    times = dataclasses.asdict(self)
    return max(times, key=times.__getitem__)


def roofline(flops: float, compiled: Compiled, chip: Chip) -> Roofline:
  """The roofline of one run, of `flops` on one chip."""
  sent = sum(c.sent for c in compiled.collectives.values())
  return Roofline(
    compute=flops / chip.flops,
    memory=compiled.traffic / chip.memory_bandwidth,
    network=sent / chip.network_bandwidth,
  )

"""The values that replace "auto", as functions of the images and the device.

All of this is [ours]. The network is the largest of a table that leaves the
teacher enough updates in its share of the minutes. The time of an update is
estimated:

  (1)  seconds = OVERHEAD * 3 * operations * batch size / speed

`operations` is the number of operations of one image forward through the
convolutions and attention of the U-Net, counted by `cost`; a gradient adds
twice as many. `speed` is the speed of the device for a few plain
convolutions and their gradient, see speed.py.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.data.apart import OF_EACH
from diffdistill.evaluation.trust import Trust
from diffdistill.fields import Fields
from diffdistill.run.network_size import Size, cost, sizes

AUTO = "auto"
# The time of an update, divided by that of the bare passes of its convolutions.
# The gradient of a network of 32 channels took 1.0 to 1.5 times as long as its
# bare passes on two busy CPU cores; the optimizer, the averages and the data
# take more time.
OVERHEAD = 2.0
SIDES = (16, 32, 64)
LARGEST_ON_A_CPU = 32
# The most values of a patch if the image size is chosen too: images become
# smaller before patches have more values than this. On 4x4 patches in colour,
# samples were still noise after 900 updates, a third of what two CPU cores do.
VALUES = 16
# The fewest updates of a teacher, if any network allows that many.
UPDATES = {"cpu": 3000, "accelerator": 10_000}
BATCH = {"cpu": 64, "accelerator": 256}
MINUTES = {"cpu": 60.0, "accelerator": 30.0}
MINUTES_OF_ANOTHER_STUDENT = {"cpu": 20.0, "accelerator": 10.0}
NUM_IMAGES = {"cpu": 1000, "accelerator": 5000}
# A judge is trained only if there are enough test images to trust a judge with
# this accuracy.
RIGHT = 0.9
# Students are selected by distance only if there are this many test images.
ENOUGH_TO_SELECT = 1000
SELECT_EVERY = 500
# Seconds between two progress lines, two checkpoints and two sample sheets.
SECONDS = {"log": 5, "checkpoint": 60, "observe": 120}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
  """The devices of a run.

  Args:
    kind: "cpu" or "accelerator".
    count: the number of devices.
    speed: floating-point operations per second of all devices together.
    memory: the bytes of one device; infinite if unknown.
  """

  kind: str
  count: int = 1
  speed: float
  memory: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """The known facts about the images.

  Args:
    sides: the shorter sides of some pictures.
    grey: whether all of these pictures are grey.
    counts: the number of images of each class.
    held_out: the number of images of the test split; None if there is none.
  """

  sides: tuple[int, ...]
  grey: bool
  counts: tuple[int, ...]
  held_out: int | None = None


def dtype(kind: str) -> str:
  """The dtype in which a network computes on a kind of device."""
  # CPUs have no fast instructions for bfloat16.
  return "float32" if kind == "cpu" else "bfloat16"


def image_sizes(sides: Sequence[int], kind: str) -> list[int]:
  """Lists the SIDES that three quarters of the pictures reach, largest first.

  They include the smallest of SIDES, and on a CPU no side above 32.
  """
  enough = sorted(sides)[len(sides) // 4]
  most = LARGEST_ON_A_CPU if kind == "cpu" else SIDES[-1]
  return [s for s in reversed(SIDES) if s <= min(enough, most)] or [SIDES[0]]


def can_be_judged(found: Found) -> bool:
  """Whether a classifier of these images could be trusted; see trust.py."""
  counts = [count for count in found.counts if count]
  if len(counts) < 2:
    return False
  tested = _tested(found)
  most = max(counts) / sum(counts) * tested
  right = int(RIGHT * tested)
  return Trust(
    right=right, count=tested, most_frequent=math.ceil(most), images=""
  ).trusted


def enough_to_select(found: Found) -> bool:
  """Whether students can be selected by distances.

  A judge that is tested on fewer images may turn out to be no better than
  chance when the first student begins, which would end the run.
  """
  return _tested(found) >= ENOUGH_TO_SELECT


def _tested(found: Found) -> int:
  """The number of images on which a classifier would be tested."""
  if found.held_out is not None:
    return found.held_out
  return sum(max(1, n // OF_EACH) for n in found.counts if n > 1)


def seconds_of(size: Size, side: int, batch: int, device: Device) -> float:
  """The estimated seconds of an update of a teacher, by equation (1)."""
  return OVERHEAD * 3 * cost(size, side)[0] * batch / device.speed


def network(
  side: int,
  colours: int,
  given: Mapping[str, Any],
  seconds: float,
  device: Device,
) -> tuple[Size, int]:
  """Chooses the network, and the batch size over all devices.

  The network is the largest one that can do enough updates in the teacher's
  `seconds`. If no network can with the usual batch size, half of that size is
  tried. If no network can with that either, the smallest network is used.
  """
  options, batches = sizes(side, colours, given), BATCH[device.kind]
  for usual in (batches, batches // 2):
    for size in options:
      batch = _in_memory(usual, size, side, device)
      if _enough(size, side, batch, seconds, device):
        return size, batch
  return options[-1], _in_memory(batches // 2, options[-1], side, device)


def image_size(
  sizes: Sequence[int],
  colours: int,
  given: Mapping[str, Any],
  seconds: float,
  device: Device,
) -> int:
  """The largest image size whose network makes good images in the time.

  Args:
    sizes: the possible sizes, the largest first; the last one is used if none
      makes good images.
    colours, given, seconds, device: see `network`.
  """
  for side in sizes:
    size, batch = network(side, colours, given, seconds, device)
    fine = size.patch**2 * colours <= VALUES or "patch" in given
    if fine and _enough(size, side, batch, seconds, device):
      return side
  return sizes[-1]


def _enough(
  size: Size, side: int, batch: int, seconds: float, device: Device
) -> bool:
  """Whether a teacher of this size does enough updates in its seconds."""
  updates = seconds / seconds_of(size, side, batch, device)
  return updates >= UPDATES[device.kind]


def _in_memory(batch: int, size: Size, side: int, device: Device) -> int:
  """Halves a batch size until a batch fits into the memory of the devices.

  The result is a multiple of the number of devices.
  """
  # Count values in bfloat16, and leave half of the memory for everything else.
  fit = device.count * device.memory / 2 / (2 * cost(size, side)[1])
  while batch > 8 and batch > fit:
    batch //= 2
  return math.ceil(batch / device.count) * device.count


def students(stages: Mapping[str, Fields]) -> int:
  """The number of stages that make students."""
  kinds = [stage.get("objective", {}).get("kind") for stage in stages.values()]
  rest = (None, "denoising", "fine_tuning", "classification")
  return sum(kind not in rest for kind in kinds)


def minutes(stages: Mapping[str, Fields], kind: str) -> float:
  """The minutes of a whole run, if nobody has given them."""
  more = max(0, students(stages) - 1)
  return MINUTES[kind] + more * MINUTES_OF_ANOTHER_STUDENT[kind]


def cadence(seconds: float) -> dict[str, int]:
  """Updates between lines, checkpoints and sheets, given seconds per update."""
  return {
    name: max(1, _round_number(every / seconds))
    for name, every in SECONDS.items()
  }


def _round_number(number: float) -> int:
  """The largest number of 1, 2 or 5 times 10^n that is not above `number`."""
  if number < 1:
    return 1
  power = 10 ** math.floor(math.log10(number))
  return int(max(n for n in (1, 2, 5) if n * power <= number) * power)

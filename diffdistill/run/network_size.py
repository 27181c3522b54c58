"""The sizes of U-Net from which a run chooses, and their cost [ours]."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The side of a patch and the channels of each network to try. A network with
# few channels makes better images on patches, which cost less, than on pixels.
SIZES = (
  *((1, channels) for channels in (128, 96, 64)),
  *((2, channels) for channels in (128, 96, 64, 48)),
  *((4, channels) for channels in (128, 96, 64, 48, 32)),
)
# The fewest channels for each value of a patch. The network must carry all the
# noise of a patch through its channels, and the image beside it; with 32
# channels for the 48 values of a 4x4 patch in colour, samples were noise.
CHANNELS_PER_VALUE = 2
# The least number of patches in a row of an image. With fewer, a network
# learns too little about positions.
FEWEST_PATCHES = 6
# A network gets more levels until the coarsest has at most this many patches in
# a row.
COARSEST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """The fields of a network that determine its size."""

  patch: int
  channels: int
  multipliers: tuple[int, ...]
  attention: tuple[int, ...]

  @property
  def words(self) -> str:
    on = f", on patches of {self.patch}x{self.patch}" if self.patch > 1 else ""
    widths = "/".join(str(m * self.channels) for m in self.multipliers)
    return f"a U-Net of {widths} channels{on}"


def sizes(side: int, colours: int, given: Mapping[str, Any]) -> list[Size]:
  """The networks for images of this side, from the largest to the smallest.

  Args:
    side: the side of the images.
    colours: the channels of the images: 3 in colour, 1 in grey.
    given: the fields of the network that the config gives.
  """
  result = []
  for patch, channels in SIZES:
    patch, channels = given.get("patch", patch), given.get("channels", channels)
    rows = side // patch
    fewest = 1 if "patch" in given else FEWEST_PATCHES
    if side % patch or rows < fewest:
      continue
    values = patch**2 * colours
    if "channels" not in given and channels < CHANNELS_PER_VALUE * values:
      continue
    heights = [rows]
    while heights[-1] > COARSEST and heights[-1] % 2 == 0:
      heights.append(heights[-1] // 2)
    usual = (1, *(2 for _ in heights[1:]))
    # The finest level gets no attention: it costs more than the convolutions.
    below = tuple(h for h in heights[1:] if h <= 16)
    size = Size(
      patch=patch,
      channels=channels,
      multipliers=tuple(given.get("multipliers", usual)),
      attention=tuple(given.get("attention", below)),
    )
    if size not in result:
      result.append(size)
  if not result:
    # No patch divides this side, or the given fields do not fit each other. The
    # builder refuses them.
    result = [Size(patch=1, channels=32, multipliers=(1,), attention=())]
  return sorted(result, key=lambda size: -cost(size, side)[0])


def cost(size: Size, side: int, blocks: int = 2) -> tuple[float, float]:
  """Counts the operations of one image forward, and the values that it keeps.

  The gradient needs the kept values; each block keeps eight maps. A
  multiplication with its addition counts as two operations.
  """
  operations = values = 0.0

  def block(inputs: int, outputs: int, rows: int) -> None:
    nonlocal operations, values
    skip = inputs * outputs if inputs != outputs else 0
    weights = 9 * inputs * outputs + 9 * outputs**2 + skip
    operations += 2.0 * weights * rows**2
    values += 4.0 * (inputs + outputs) * rows**2
    if rows in size.attention:
      attend(outputs, rows)

  def attend(channels: int, rows: int) -> None:
    nonlocal operations, values
    operations += 8.0 * channels**2 * rows**2 + 4.0 * channels * rows**4
    values += 6.0 * channels * rows**2 + 2.0 * rows**4

  rows, width = side // size.patch, size.channels
  # Add the first convolution and the last.
  operations += 2 * 2.0 * 9 * 3 * size.patch**2 * width * rows**2
  skips = [width]
  for level, multiplier in enumerate(size.multipliers):
    if level:
      rows //= 2
      block(width, width, rows)
      skips.append(width)
    for _ in range(blocks):
      block(width, multiplier * size.channels, rows)
      width = multiplier * size.channels
      skips.append(width)
  block(width, width, rows)
  attend(width, rows)
  block(width, width, rows)
  for level, multiplier in reversed(list(enumerate(size.multipliers))):
    for _ in range(blocks + 1):
      block(width + skips.pop(), multiplier * size.channels, rows)
      width = multiplier * size.channels
    if level:
      rows *= 2
      block(width, width, rows)
  return operations, values

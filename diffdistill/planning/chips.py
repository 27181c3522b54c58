"""Lists the speed and memory of chips, as published by their makers."""

import dataclasses

GIB = 2.0**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "NVIDIA's data sheet, dense, SXM"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A chip, which is one device in JAX.

  Args:
    name: the chip's name at the start of a topology, such as "v5e".
    kinds: the names that JAX has for the device, in lower case.
    flops: peak FLOP/s of bfloat16 products.
    memory: the bytes of memory that a program can use.
    memory_bandwidth: bytes/s between the chip and its memory.
    network_bandwidth: bytes/s that the chip can send over all of its links to
      other chips of its slice or node; half of a published bidirectional
      number.
    source: the source of the numbers.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  memory: float
  memory_bandwidth: float
  network_bandwidth: float
  source: str


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      kinds=("tpu v4",),
      flops=275e12,
      memory=32 * GIB,
      memory_bandwidth=1200e9,
      # The source gives 1.1 PB/s for the all-reduce of a pod of 4096 chips.
      network_bandwidth=268e9,
      source=GOOGLE + "v4",
    ),
    Chip(
      name="v5e",
      kinds=("tpu v5 lite", "tpu v5e"),
      flops=197e12,
      # The compiler lets a program use only 15.75 GiB of the published 16 GB.
      memory=15.75 * GIB,
      memory_bandwidth=819e9,
      network_bandwidth=200e9,
      source=GOOGLE + "v5e",
    ),
    Chip(
      name="v5p",
      kinds=("tpu v5", "tpu v5p"),
      flops=459e12,
      memory=95 * GIB,
      memory_bandwidth=2765e9,
      network_bandwidth=600e9,
      source=GOOGLE + "v5p-training",
    ),
    Chip(
      name="v6e",
      kinds=("tpu v6 lite", "tpu v6e"),
      flops=918e12,
      # This is the published size. It is not known how much of it the compiler
      # lets a program use.
      memory=32 * GIB,
      memory_bandwidth=1638e9,
      network_bandwidth=400e9,
      source=GOOGLE + "v6e",
    ),
    Chip(
      name="a100",
      kinds=("nvidia a100-sxm4-80gb",),
      flops=312e12,
      memory=80e9,
      memory_bandwidth=2039e9,
      network_bandwidth=300e9,
      source=NVIDIA,
    ),
    Chip(
      name="h100",
      kinds=("nvidia h100 80gb hbm3",),
      flops=989e12,
      memory=80e9,
      memory_bandwidth=3350e9,
      network_bandwidth=450e9,
      source=NVIDIA,
    ),
    Chip(
      name="h200",
      kinds=("nvidia h200",),
      flops=989e12,
      memory=141e9,
      memory_bandwidth=4800e9,
      network_bandwidth=450e9,
      source=NVIDIA,
    ),
  )
}


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip of a device kind; None for a CPU or an unknown chip."""
  for chip in CHIPS.values():
    if device_kind.lower() in chip.kinds:
      return chip
  return None

"""TPU slices by the names that Google Cloud gives them.

The number in a name counts chips for v5e and v6e, but TensorCores, two a chip,
for v4 and v5p. JAX has one device a chip on all of these.

Sources: chips, TensorCores, topologies and VMs of a slice are from "TPU v4",
"TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v4 and so on), the
runtime versions from "TPU software versions" (cloud.google.com/tpu/docs/
runtimes) and the names in a GKE cluster from "Plan TPUs in GKE"
(cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
"""

import dataclasses

from shell import RefusalError

_FLAT = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_CUBIC = {
  4: "2x2x1",
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
  512: "8x8x8",
  768: "8x8x12",
  1024: "8x8x16",
  2048: "8x16x16",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """A generation of TPUs.

  Args:
    topologies: by the number of chips.
    cores_per_chip: that its names count; 1 where they count chips.
    largest_host: chips of a slice that is one virtual machine; those of larger
      slices have four each.
    runtime: the software of its virtual machines.
    gke: what GKE calls it.
  """

  topologies: dict[int, str]
  cores_per_chip: int
  largest_host: int
  runtime: str
  gke: str


FAMILIES = {
  "v4": Family(
    topologies=_CUBIC,
    cores_per_chip=2,
    largest_host=4,
    runtime="tpu-ubuntu2204-base",
    gke="tpu-v4-podslice",
  ),
  "v5litepod": Family(
    topologies=_FLAT,
    cores_per_chip=1,
    largest_host=8,
    runtime="v2-alpha-tpuv5-lite",
    gke="tpu-v5-lite-podslice",
  ),
  "v5p": Family(
    topologies={
      **_CUBIC,
      192: "4x4x12",
      384: "4x8x12",
      1536: "8x12x16",
      4096: "16x16x16",
    },
    cores_per_chip=2,
    largest_host=4,
    runtime="v2-alpha-tpuv5",
    gke="tpu-v5p-slice",
  ),
  "v6e": Family(
    topologies=_FLAT,
    cores_per_chip=1,
    largest_host=8,
    runtime="v2-alpha-tpuv6e",
    gke="tpu-v6e-slice",
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Chips that share one fast network.

  Args:
    accelerator: its name in Cloud TPU, such as "v5litepod-256".
    chips: which are JAX's devices.
    hosts: virtual machines, or nodes of a cluster, with chips / hosts each.
    runtime: the software of its virtual machines.
    gke: what GKE calls its generation.
    topology: what GKE calls its shape.
  """

  accelerator: str
  chips: int
  hosts: int
  runtime: str
  gke: str
  topology: str


def parse(accelerator: str) -> Slice:
  """The slice of that name.

  Raises:
    RefusalError: where there is none.
  """
  name, _, number = accelerator.rpartition("-")
  family = FAMILIES.get(name)
  if family is None:
    raise RefusalError(
      f"--accelerator is {accelerator!r}; pass one of"
      f" {', '.join(f'{known}-N' for known in FAMILIES)} (v5litepod is v5e)"
    )
  names = {n * family.cores_per_chip: n for n in sorted(family.topologies)}
  chips = names.get(int(number)) if number.isdecimal() else None
  if chips is None:
    counted = "chips" if family.cores_per_chip == 1 else "cores, two a chip"
    raise RefusalError(
      f"--accelerator is {accelerator!r}; {name}-N counts {counted}, and N is"
      f" one of {', '.join(map(str, names))}"
    )
  return Slice(
    accelerator=accelerator,
    chips=chips,
    hosts=1 if chips <= family.largest_host else chips // 4,
    runtime=family.runtime,
    gke=family.gke,
    topology=family.topologies[chips],
  )

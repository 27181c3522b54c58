"""Describes devices of another machine, for which programs can be compiled."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from diffdistill.planning.chips import CHIPS, Chip
from diffdistill.system.extras import installing

# Matches names such as v5e:8x8, v5p:4x4x4 and cpu:8; v5e:16x16*2 is two
# slices.
_NAME = re.compile(r"(\w+):([\dx]+)(?:\*(\d{1,4}))?", re.ASCII)
# These variables stop the TPU compiler from searching for TPUs on this machine,
# and allow several processes to load it.
_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices for which programs are compiled.

  Args:
    name: the name of the topology, such as "v5e:8x8".
    devices: the devices; they need not be on this machine.
    chip: the speed and memory of each device; None if unknown.
    compiler: the name and version of the compiler.
  """

  name: str
  devices: tuple[Any, ...]
  chip: Chip | None
  compiler: str

  @property
  def is_here(self) -> bool:
    """Whether the topology's devices are on this machine."""
    return self.devices[0].platform == "cpu"


def topology_of(name: str) -> Topology:
  """Returns the topology of a name, before anything asks JAX for devices.

  Args:
    name: "cpu:8" for 8 devices of this machine's CPU, or a topology of the TPU
      compiler: "v5e:8x8", "v5p:4x4x4", or "v5e:16x16*2" for two slices.

  Raises:
    ValueError: if no compiler knows the name, or if the TPU compiler is not
      installed.
  """
  found = _NAME.fullmatch(name)
  if found is None:
    raise ValueError(
      f"topology is {name!r}; pass one such as v5e:8x8, v5p:4x4x4,"
      " v5e:16x16*2 or cpu:8"
    )
  kind, shape, slices = found.groups()
  # The compiler needs no accelerator, so keep JAX from searching for one.
  jax.config.update("jax_platforms", "cpu")
  if kind == "cpu":
    return _cpu(name, int(shape) if re.fullmatch(r"\d{1,3}", shape) else 0)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology is {name!r}, but the TPU compiler is not installed;"
      f" {installing('plan')}"
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options = {"num_slices": int(slices)} if slices else {}
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{kind}:{shape}", **options
    )
  except Exception as error:
    # The compiler's exceptions have no public class, so catch all of them.
    raise ValueError(
      f"topology is {name!r}, which the TPU compiler refuses"
      f" ({' '.join(str(error).split())[:200]}); pass one such as v5e:8x8"
    ) from error
  return Topology(
    name=name,
    devices=tuple(description.devices),
    chip=CHIPS.get(kind),
    compiler=f"libtpu {metadata.version('libtpu')}",
  )


def _cpu(name: str, count: int) -> Topology:
  # JAX raises RuntimeError if it already has devices.
  with contextlib.suppress(RuntimeError, ValueError):
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if not 0 < count <= len(devices):
    raise ValueError(
      f"topology is {name!r}, but there are {len(devices)} CPU devices; pass"
      f" cpu:1 to cpu:{len(devices)}, or plan in a new process"
    )
  return Topology(
    name=name,
    devices=tuple(devices[:count]),
    chip=None,
    compiler=f"jaxlib {jax.lib.__version__}",
  )

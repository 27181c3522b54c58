"""The devices of a machine that is not here, to compile for."""

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

# v5e:8x8, v5p:4x4x4, cpu:8; v5e:16x16*2 is two slices.
_NAME = re.compile(r"(\w+):([\dx]+)(?:\*(\d{1,4}))?", re.ASCII)
# Or the TPU compiler looks for the machine that it runs on, and complains; and
# only one process may have it.
_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices that programs are compiled for.

  Args:
    name: such as "v5e:8x8".
    devices: not necessarily here.
    chip: what each of them can do; None where that is not known.
    compiler: its name and version.
  """

  name: str
  devices: tuple[Any, ...]
  chip: Chip | None
  compiler: str

  @property
  def is_here(self) -> bool:
    """Whether they are this machine's own."""
    return self.devices[0].platform == "cpu"


def topology_of(name: str) -> Topology:
  """The topology called so; before it, nothing may have asked for a device.

  Args:
    name: "cpu:8" for so many devices of this machine's CPU, or one of the TPU
      compiler's: "v5e:8x8", "v5p:4x4x4"; "v5e:16x16*2" for two slices.

  Raises:
    ValueError: for a name that no compiler knows, or without the compiler.
  """
  found = _NAME.fullmatch(name)
  if found is None:
    raise ValueError(
      f"topology is {name!r}; pass one such as v5e:8x8, v5p:4x4x4,"
      " v5e:16x16*2 or cpu:8"
    )
  kind, shape, slices = found.groups()
  # The compiler is asked by name: nothing is to look for accelerators here.
  jax.config.update("jax_platforms", "cpu")
  if kind == "cpu":
    return _cpu(name, int(shape) if re.fullmatch(r"\d{1,3}", shape) else 0)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology is {name!r}, but the TPU compiler is not installed; run"
      " `pip install diffdistill[plan]`"
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options = {"num_slices": int(slices)} if slices else {}
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{kind}:{shape}", **options
    )
  except Exception as error:
    # The compiler's own exceptions are of no public class.
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
  # RuntimeError: they have been counted already.
  with contextlib.suppress(RuntimeError, ValueError):
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if not 0 < count <= len(devices):
    raise ValueError(
      f"topology is {name!r}, but there are {len(devices)} CPU devices; pass"
      f" cpu:1 to cpu:{len(devices)}, or ask in a process of its own"
    )
  return Topology(
    name=name,
    devices=tuple(devices[:count]),
    chip=None,
    compiler=f"jaxlib {jax.lib.__version__}",
  )

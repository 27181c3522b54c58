"""The command that prints what this machine has and what it lacks."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from etils import epath

from diffdistill.run import compilations
from diffdistill.system.extras import installing
from diffdistill.system.files import in_bucket
from diffdistill.tools.speaking import answer
from diffdistill.version import VERSION

# The packages of each extra, as in pip install '.[plan]'.
EXTRAS = {
  "cuda": ("jax_cuda13_plugin",),
  "gcs": ("gcsfs",),
  "plan": ("libtpu",),
  "tensorboard": ("clu", "tensorflow", "tensorboard"),
  "tfds": ("tensorflow_datasets", "array_record"),
  "tpu": ("libtpu",),
  "wandb": ("wandb",),
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
# Seconds to wait for JAX to list its devices. A pod may take minutes, and a
# broken driver never answers.
PATIENCE = 120
LIST_DEVICES = """
import jax
for device in jax.devices():
  memory = (device.memory_stats() or {}).get("bytes_limit")
  room = f", {memory / 2**30:.1f} GiB for JAX" if memory else ""
  print(f"{device.id}: {device.device_kind}{room}")
"""


def doctor(workdir: epath.Path | None) -> None:
  """Prints one line for each thing that a run needs from the machine.

  Args:
    workdir: the folder whose disk is examined; it need not exist yet. None
      means the current folder.

  Raises:
    ValueError: if JAX finds no device or the workdir cannot be written.
  """
  devices, found = _devices()
  disk, writable = _disk(workdir or epath.Path())
  for what, finding in (
    ("diffdistill", f"{VERSION}, in {Path(__file__).parents[1]}"),
    ("Python", f"{platform.python_version()}, {platform.platform()}"),
    ("packages", _versions()),
    ("devices", devices),
    ("processor", _cores()),
    ("memory", _memory()),
    ("workdir", disk),
    ("compilations", compilations.described()),
    *((f"extra {name}", _extra(name)) for name in EXTRAS),
  ):
    answer(f"{what + ':':<18} {finding}")
  if not (found and writable):
    useless = "devices" if writable else "workdir"
    raise ValueError(
      f"no run can start here; mend what the line of the {useless} says"
    )


def _versions() -> str:
  return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)


def _devices() -> tuple[str, bool]:
  """Lists the devices of JAX, in a process of its own because JAX may hang.

  Returns:
    A text that names the devices or says why there is none; and whether there
    is a device.
  """
  # With -P, Python does not import a user's jax.py from the current folder.
  command = [sys.executable, "-P", "-c", LIST_DEVICES]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
  except subprocess.TimeoutExpired:
    return (
      f"JAX has found none in {PATIENCE} s; see whether another process holds"
      " them, and whether the driver answers"
    ), False
  if done.returncode:
    (*_, last) = done.stderr.strip().splitlines() or [""]
    return f"JAX finds none ({last}); see JAX_PLATFORMS and the driver", False
  return "; ".join(done.stdout.splitlines()), True


def _cores() -> str:
  """A text that states how many cores this process may use."""
  total = os.cpu_count() or 1
  usable = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
  )
  return f"{usable} of {total} cores for this process"


def _memory() -> str:
  """A text that states the free memory of this host."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return "unknown: this system does not say"
  kilobytes = {name: int(rest.split()[0]) for name, rest in map(_split, lines)}
  free, total = kilobytes["MemAvailable"], kilobytes["MemTotal"]
  return f"{free / 2**20:.1f} of {total / 2**20:.1f} GiB free"


def _split(line: str) -> tuple[str, str]:
  name, _, rest = line.partition(":")
  return name, rest


def _disk(workdir: epath.Path) -> tuple[str, bool]:
  """Measures the free space of the workdir's disk, and tries to write there.

  Returns:
    A text that states the free space or the problem; and whether the workdir
    can be written.
  """
  if in_bucket(workdir):
    installed = importlib.util.find_spec("gcsfs") is not None
    rest = "" if installed else f"; {installing('gcs')}"
    return f"{workdir} is in a bucket, which is not tried here{rest}", installed
  folder = Path(workdir).absolute()
  while not folder.exists():
    folder = folder.parent
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    reason = error.strerror or type(error).__name__
    return f"{folder} cannot be written ({reason}); pass --workdir", False
  free = shutil.disk_usage(folder).free
  return f"{folder} can be written, {free / 2**30:.1f} GiB free", True


def _extra(name: str) -> str:
  """A text that says whether an extra is installed, or how to install it."""
  missing = [p for p in EXTRAS[name] if importlib.util.find_spec(p) is None]
  if not missing:
    return "installed"
  lacks = ", ".join(missing)
  return f"not installed (no {lacks}); {installing(name)}"

"""Settings of JAX outside a config that change the computed numbers.

People or schedulers set them as variables (JAX_ENABLE_X64=1), often for other
programs. There are three kinds:

  pinned     A run always has the same value: the generator of random numbers,
             the widths of numbers, the promotion of types.
  checked    The person chooses the precision of matrix products, and a workdir
             keeps the one that it began with.
  recorded   The compiler's flags, versions and the kind of device may change
             between two starts of a run; the later start prints the change.

Settings that only make JAX stricter (JAX_DEBUG_NANS, JAX_NUMPY_RANK_PROMOTION)
stay as they are: they change no number.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json
from diffdistill.version import VERSION

PINNED = {
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_random_seed_offset": 0,
  "jax_high_dynamic_range_gumbel": False,
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_allow_f16_reductions": True,
  "jax_softmax_custom_jvp": False,
  "jax_disable_jit": False,
}
PRECISION = "matmul_precision"
PRECISION_SETTING = "jax_default_matmul_precision"
PRECISION_VARIABLE = "JAX_DEFAULT_MATMUL_PRECISION"
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# Flags that only make the compiler write about its work, without other effects.
HARMLESS = ("--xla_dump", "--xla_hlo_profile", "--vmodule", "--v=")
FILE = "environment.json"
# Linux lists each GPU that a process may open in this folder.
DEVICES = Path("/dev")


def pin() -> None:
  """Gives every pinned setting its value; reports each one that it changes."""
  for name, value in PINNED.items():
    # Skip a setting that another version of JAX does not have.
    if not hasattr(jax.config, name):
      continue
    here = _plain(getattr(jax.config, name))
    if here != value:
      jax.config.update(name, value)
      sys.stderr.write(
        f"diffdistill: {name.upper()} is {here!r} here and would change what"
        f" is computed; {value!r} is used\n"
      )


def unused_gpus() -> str:
  """A line about GPUs of this machine that JAX does not use; "" if none.

  There is no line if JAX_PLATFORMS names the platforms, as that is a choice.
  """
  gpus = sorted(path.name for path in DEVICES.glob("nvidia[0-9]*"))
  chosen = getattr(jax.config, "jax_platforms", None)
  if chosen or not gpus or jax.default_backend() != "cpu":
    return ""
  return (
    f"this machine has NVIDIA GPUs ({', '.join(gpus)}), but JAX uses the CPU;"
    " install jax[cuda13], or set JAX_PLATFORMS=cpu if the CPU is meant"
  )


def described() -> dict[str, Any]:
  """The settings that are checked and recorded, as plain values."""
  flags = {name: _flags(os.environ.get(name, "")) for name in VARIABLES}
  versions = {
    name: importlib.metadata.version(name)
    for name in ("jax", "jaxlib", "flax", "optax", "numpy")
  }
  precision = _plain(getattr(jax.config, PRECISION_SETTING)) or "default"
  return {
    PRECISION: str(precision),
    **{name: value for name, value in flags.items() if value},
    "diffdistill": VERSION,
    **versions,
  }


def record(workdir: epath.Path, say: Callable[[str], None]) -> None:
  """Records the environment of this start of a run, and checks its precision.

  Raises:
    ValueError: if the run began with another precision of matrix products, or
      its record is damaged.
  """
  here = {**described(), "device": jax.devices()[0].device_kind}
  for line in hosts.on_first(lambda: _record(workdir, here)):
    say(line)


def check(workdir: epath.Path) -> None:
  """Refuses to use another precision than the run was trained with.

  Raises:
    ValueError: in the same cases as `record`.
  """
  here = described()

  def look() -> None:
    lives = _lives(workdir)
    if lives:
      _check_precision(workdir, lives[-1], here)

  hosts.on_first(look)


def _record(workdir: epath.Path, here: dict[str, Any]) -> list[str]:
  """Records the environment and returns one line for each change in it."""
  lives = _lives(workdir)
  last = lives[-1] if lives else here
  _check_precision(workdir, last, here)
  if not lives or last != here:
    write_json(workdir / FILE, {"lives": [*lives, here]})
  return [
    f"{name} was {last.get(name, 'unset')} in this run's last life and is"
    f" {here.get(name, 'unset')} now: results may differ in their last bits"
    for name in sorted(last.keys() | here.keys())
    if last.get(name) != here.get(name)
  ]


def _lives(workdir: epath.Path) -> list[dict[str, Any]]:
  path = workdir / FILE
  if not path.exists():
    return []
  try:
    return read_json(path)["lives"]
  except (ValueError, KeyError) as error:
    raise ValueError(
      f"{error}; restore it, or remove it to go on without what it recorded"
    ) from error


def _check_precision(
  workdir: epath.Path, last: dict[str, Any], here: dict[str, Any]
) -> None:
  theirs, ours = last[PRECISION], here[PRECISION]
  if theirs != ours:
    remedy = f"set {PRECISION_VARIABLE}={theirs}"
    if theirs == "default":
      remedy = f"unset {PRECISION_VARIABLE}"
    raise ValueError(
      f"{workdir} was trained with {PRECISION_VARIABLE} {theirs}, and it is"
      f" {ours} here; {remedy}, or pass a new --workdir"
    )


def _flags(text: str) -> str:
  """The flags that may change the computed numbers, sorted."""
  flags = (f for f in text.split() if not f.startswith(HARMLESS))
  return " ".join(sorted(flags))


def _plain(value: Any) -> Any:
  """The value of a setting as JSON can hold it, also of an enumeration."""
  return getattr(value, "value", value)

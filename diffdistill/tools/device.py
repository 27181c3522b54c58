"""python -m diffdistill.tools.device: names the one device that JAX finds.

This runs in a process of its own: a process that asks JAX for a device keeps
the device, and hangs if the driver hangs.
"""

import re
import sys

import jax


def main() -> int:
  """Prints the device's name, fit for a file name; returns the exit status."""
  try:
    device, *others = jax.devices()
  except RuntimeError as error:
    return _refuse(f"JAX finds no device ({' '.join(str(error).split())})")
  if device.platform == "cpu" and "--cpu" not in sys.argv[1:]:
    return _refuse(
      "JAX finds no GPU or TPU; install its plugin, such as jax[cuda13], or"
      " pass --cpu"
    )
  if others:
    return _refuse(
      f"JAX finds {1 + len(others)} devices; show it one, such as"
      " CUDA_VISIBLE_DEVICES=0"
    )
  memory = (device.memory_stats() or {}).get("bytes_limit")
  said = f", {memory / 2**30:.1f} GiB for JAX" if memory else ""
  print(
    f"diffdistill run: {device.device_kind}{said}", file=sys.stderr, flush=True
  )
  print(re.sub(r"[^a-z0-9]+", "_", device.device_kind.lower()).strip("_"))
  return 0


def _refuse(why: str) -> int:
  print(f"diffdistill: {why}", file=sys.stderr)
  return 1


if __name__ == "__main__":
  sys.exit(main())

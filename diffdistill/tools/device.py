"""python -m diffdistill.tools.device: names the one device that JAX finds.

A process of its own, since a process that asks for a device keeps it, and may
hang where the driver does.
"""

import re
import sys

import jax


def main() -> int:
  """Prints the device's name as a part of a file's name; the exit status."""
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

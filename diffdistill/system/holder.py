"""Says which process holds a workdir, and whether it has certainly ended."""

import os
import socket
from pathlib import Path
from typing import Any


def identity() -> dict[str, Any]:
  """Fields that identify this process among all processes of all hosts."""
  return {
    "host": socket.gethostname(),
    "boot": _boot(),
    "process": os.getpid(),
    "started": _started(os.getpid()),
  }


def _boot() -> str:
  """Returns the boot and namespace within which process numbers are unique."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
  except OSError:
    return ""


def _started(process: int) -> str:
  """Returns the start time of a process of this host; "" if it has ended."""
  try:
    text = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return ""
  # The name of the process is in brackets, and the fields follow; see proc(5).
  state, *fields = text.rpartition(")")[2].split()
  return "" if state in "ZX" else fields[18]


def is_dead(holder: dict[str, Any]) -> bool:
  """Returns whether a holder was on this host and has certainly ended."""
  here = identity()
  if not here["boot"] or any(
    holder.get(name) != here[name] for name in ("host", "boot")
  ):
    return False
  process = holder.get("process")
  return isinstance(process, int) and (
    _started(process) != holder.get("started")
  )


def named(holder: dict[str, Any]) -> str:
  if "process" not in holder:
    return "an unknown process (its lock is damaged)"
  return f"process {holder['process']} on {holder['host']}"

"""The processes of one command: how they join, agree, and end together.

A command is one process, or one on each of several hosts. JAX is imported where
it is needed: a refused command line does not wait for it.
"""

import os
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from diffdistill.cli.command import HOSTS, Command
from diffdistill.ranges import brief
from diffdistill.system import signals
from diffdistill.system.links import GO_ON
from diffdistill.system.refusals import UsageError, line_of

_PLACE = ("coordinator", "num_processes", "process_id")


def join(name: str, command: Command, values: Mapping[str, Any]) -> None:
  """Joins the processes that a cluster, or flags, started with this one.

  Args:
    name: of the command.
    command: one that can run on several hosts.
    values: of its flags.

  Raises:
    UsageError: where the other processes cannot be found.
    ValueError: where another process runs another command, or where there are
      more or fewer devices than expected.
  """
  from diffdistill.run import agreement
  from diffdistill.system import hosts

  place = _place(values)
  if values["multihost"]:
    try:
      hosts.join(*place)
    except ValueError as error:
      raise UsageError(
        f"--multihost finds no cluster ({error}); pass --coordinator, or leave"
        " it out on one host"
      ) from error
  if values["expect_devices"] is not None:
    hosts.check_devices(values["expect_devices"])
  if values["multihost"]:
    agreement.agree(_described(name, command, values))


def _place(values: Mapping[str, Any]) -> tuple[Any, ...]:
  """The place of this process among all, as flags say; all None without them.

  Raises:
    UsageError: where they do not fit together.
  """
  given = [name for name in _PLACE if values[name] is not None]
  if not given:
    return (None,) * len(_PLACE)
  if not values["multihost"]:
    raise UsageError(f"--{given[0]} is for --multihost; pass that too")
  missing = [name for name in _PLACE if name not in given]
  if missing:
    raise UsageError(
      f"--{given[0]} comes without --{missing[0]}; pass all of"
      f" {', '.join(f'--{name}' for name in _PLACE)}, or none in a cluster that"
      " JAX knows"
    )
  coordinator, count, index = (values[name] for name in _PLACE)
  port = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
  if not (port and 0 < int(port[1]) < 2**16):
    raise UsageError(
      f"--coordinator is {brief(coordinator)}; pass HOST:PORT of process 0"
    )
  if index >= count:
    raise UsageError(
      f"--process_id is {index} of {count} processes; pass 0 to one less than"
      " --num_processes"
    )
  return coordinator, count, index


def _described(
  name: str, command: Command, values: Mapping[str, Any]
) -> dict[str, Any]:
  """What a command does, without how its processes find each other."""
  own = [flag for flag in command.flags if flag not in HOSTS]
  return {
    "command": name,
    **{
      flag.name if flag.kind == "config" else f"--{flag.name}": values[
        flag.name
      ]
      for flag in own
    },
    **{
      flag.variable: os.environ.get(flag.variable)
      for flag in own
      if flag.variable
    },
  }


def joined() -> bool:
  """Whether this process is one of several."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def refuse(error: Exception | str, status: int) -> int:
  """Says why the command is refused, once for all processes; the status."""
  message = line_of(error)
  if not joined():
    print(f"diffdistill: {message}", file=sys.stderr)
    return status
  from diffdistill.system import hosts

  # The first process says what all of them have to say.
  if not hosts.unanimous(message):
    _end(message, status)
  if hosts.is_first():
    print(f"diffdistill: {message}", file=sys.stderr)
  return status


def fail() -> NoReturn:
  """Ends one of several processes that failed, or has lost another."""
  from diffdistill.system import hosts

  lost = hosts.lost_process()
  if lost is None:
    traceback.print_exc()
  what = "failed" if lost is None else f"process {lost} is lost"
  signals.end(f"{what}; {GO_ON}", 70)


def _end(message: str, status: int) -> NoReturn:
  """Ends this process at once: the usual end waits for the others."""
  import jax

  print(
    f"diffdistill: process {jax.process_index()} of {jax.process_count()}:"
    f" {message}",
    file=sys.stderr,
    flush=True,
  )
  os._exit(status)

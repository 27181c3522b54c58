"""Lets the processes of one command join, agree and end together.

A command runs in one process, or in one process on each of several hosts. The
functions import JAX themselves, so that wrong flags are refused at once.
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
  """Joins the processes of this command, which the cluster or the flags name.

  Args:
    name: the name of the command.
    command: a command that can run on several hosts.
    values: the values of its flags.

  Raises:
    UsageError: if the other processes cannot be found.
    ValueError: if another process runs another command, or if the number of
      devices is not the expected number.
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
  """Reads from the flags which of how many processes this one is.

  Returns:
    The coordinator's address, the number of processes and the number of this
    process; or three times None if no flag names them.

  Raises:
    UsageError: if the flags contradict each other.
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
  """The command and its flags, without the flags of HOSTS."""
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
  """Whether this process has joined others."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def refuse(error: Exception | str, status: int) -> int:
  """Prints why the command is refused, once for all processes.

  Returns:
    The exit status.
  """
  message = line_of(error)
  if not joined():
    print(f"diffdistill: {message}", file=sys.stderr)
    return status
  from diffdistill.system import hosts

  # If all processes have the same message, only the first prints it.
  if not hosts.unanimous(message):
    _end(message, status)
  if hosts.is_first():
    print(f"diffdistill: {message}", file=sys.stderr)
  return status


def fail() -> NoReturn:
  """Ends this process of several after an error, or after one was lost."""
  from diffdistill.system import hosts

  lost = hosts.lost_process()
  if lost is None:
    traceback.print_exc()
  what = "failed" if lost is None else f"process {lost} is lost"
  signals.end(f"{what}; {GO_ON}", 70)


def _end(message: str, status: int) -> NoReturn:
  """Ends this process at once, without waiting for the other processes."""
  import jax

  print(
    f"diffdistill: process {jax.process_index()} of {jax.process_count()}:"
    f" {message}",
    file=sys.stderr,
    flush=True,
  )
  os._exit(status)

"""What a command and a flag are, and the flags that several commands have.

This file imports nothing that takes long: the help needs it.
"""

import dataclasses
from typing import Literal

from diffdistill.ranges import Range

Kind = Literal[
  "text",
  "int",
  "ints",  # one or several: 1,2,4
  "float",
  "switch",
  "place",  # a file, a folder, or one in a bucket
  "places",
  "config",  # a config file and its recipe
  "config words",  # the same, as it was written
]


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of a command. It has a default, or `unset`, or is required.

  Args:
    name: as a person writes it after "--".
    kind: how its text is read.
    help: what it means, in whole sentences.
    default: its value if the flag is not given.
    unset: what happens if the flag is not given, in words.
    required: whether the command is refused without it.
    range: the numbers that are allowed.
    choices: the only texts that are allowed, if there are any.
    form: how the help writes its value; if empty, the usual form of its kind.
    parameter: the parameter of the command's function; if empty, the name.
    variable: an environment variable that the command reads too.
  """

  name: str
  kind: Kind
  help: str
  _: dataclasses.KW_ONLY
  default: str | int | float | tuple[int, ...] | None = None
  unset: str = ""
  required: bool = False
  range: Range | None = None
  choices: tuple[str, ...] = ()
  form: str = ""
  parameter: str = ""
  variable: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A command.

  Args:
    about: what it does and what it writes; the first sentence says it alone in
      the list of commands.
    function: the function that does it, as "module:name". Each flag is a
      parameter of it.
    flags: its flags; HOSTS are among them if it can run on several hosts.
    example: the flags of one command line, as a person types them.
    computes: whether it uses JAX in its own process.
    again: what the same command does after a signal has ended it.
  """

  about: str
  function: str
  flags: tuple[Flag, ...]
  example: str
  computes: bool = True
  again: str = "the same command starts over"

  @property
  def summary(self) -> str:
    """What it does, in one line."""
    return self.about.split(". ")[0].rstrip(".")


IMAGES, STEPS = Range(1, 10**7), Range(1, 10**5)
CONFIG = Flag(
  "config",
  "config",
  "A recipe, such as digits:progressive, or FILE.py:RECIPE for a file of your"
  " own. `diffdistill list` names the recipes.",
  required=True,
  form="RECIPE",
)
WORKDIR = Flag(
  "workdir",
  "place",
  "The folder of the run, on a disk or in a bucket.",
  required=True,
)
ROUND = Flag(
  "round",
  "text",
  "Which model of the run, such as teacher or halve/004.",
  unset="the last student",
  parameter="round_name",
)
NUM_STEPS = Flag(
  "num_steps",
  "int",
  "The number of steps of the sampler.",
  unset="as many as the student was made for; for a teacher, the largest number"
  " in the config's evaluation",
  range=STEPS,
)
FOLDER = Flag("out", "place", "The new folder to write.", required=True)
# How the processes of several hosts find each other.
HOSTS = (
  Flag(
    "multihost",
    "switch",
    "First join the processes on the other hosts. Start the same command on"
    " each host.",
    default=False,
  ),
  Flag(
    "expect_devices",
    "int",
    "The number of devices of all hosts together. The command is refused if"
    " there are more or fewer.",
    unset="any number",
    range=Range(1, 10**6),
  ),
  Flag(
    "coordinator",
    "text",
    "The address of process 0. It is needed where JAX knows no cluster.",
    unset="as the cluster says",
    form="HOST:PORT",
  ),
  Flag(
    "num_processes",
    "int",
    "The number of processes. Pass it with --coordinator.",
    unset="as the cluster says",
    range=Range(1, 10**6),
  ),
  Flag(
    "process_id",
    "int",
    "The number of this process, from 0. Pass it with --coordinator.",
    unset="as the cluster says",
    range=Range(0, 10**6),
  ),
)

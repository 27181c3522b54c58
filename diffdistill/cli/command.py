"""The classes of a command and of a flag, and the flags that commands share.

This file imports no slow library, because the help imports this file.
"""

import dataclasses
from typing import Literal

from diffdistill.ranges import STEPS, Range

Kind = Literal[
  "text",
  "int",
  "ints",  # one or several integers, such as 1,2,4
  "float",
  "switch",
  "place",  # a path or an address: a file or a folder, on a disk or in a bucket
  "places",
  "config",  # a config file and its recipe
  "config words",  # the flags of a config, as words of the command line
]


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of a command, which has a default, or `unset`, or is required.

  Args:
    name: the name of the flag, without "--".
    kind: the type of the value, which decides how its text is read.
    help: the meaning of the flag, in whole sentences.
    default: the value if the flag is not given.
    unset: a text that says what happens if the flag is not given.
    required: whether the command is refused without the flag.
    range: the allowed numbers.
    choices: the allowed texts; if empty, every text is allowed.
    form: the text for the value in the help; if empty, the form of its kind.
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
    about: a text that says what the command does and writes; the list of
      commands shows only its first sentence.
    function: the function of the command, as "module:name". Each flag is a
      parameter of this function.
    flags: the flags; they include HOSTS if the command can run on several
      hosts.
    example: the flags of an example, as a user types them.
    computes: whether the command uses JAX in its own process.
    again: a text that says what the same command does after a signal ended it.
  """

  about: str
  function: str
  flags: tuple[Flag, ...]
  example: str
  computes: bool = True
  again: str = "the same command starts over"

  @property
  def summary(self) -> str:
    """One line that says what the command does."""
    return self.about.split(". ")[0].rstrip(".")


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
REDO = Flag(
  "redo",
  "text",
  "A round to train again, such as halve/004, with all later rounds that begin"
  " from it. Its stage may have other settings now. The old rounds are kept, as"
  " halve-old1/004.",
  unset="finished rounds are not trained again",
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
# The flags by which the processes of several hosts find each other.
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

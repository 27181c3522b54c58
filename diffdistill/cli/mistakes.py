"""The one line that explains a wrong command line and says what to pass."""

import itertools
import re
from collections.abc import Sequence

from absl import flags as absl_flags

from diffdistill.cli.commands import COMMANDS
from diffdistill.cli.usage import similar
from diffdistill.ranges import brief

FLAG = re.compile(r"--?[A-Za-z]")
# Pairs: a part of a library's error message, and the remedy to print instead.
_UNREADABLE = (
  ("invalid literal for int", "pass a whole number"),
  ("could not convert string to float", "pass a number"),
  ("Non-boolean argument", "pass True or False"),
  ("as a ConfigDict", "set its fields, each as --config.SECTION.FIELD=VALUE"),
  ("a single element", "pass values with commas between them, such as 1,2,4"),
)


def stray(name: str, word: str, words: Sequence[str]) -> str:
  """The message about a word that is neither a flag nor the value of one."""
  own = {flag.name: flag for flag in COMMANDS[name].flags}
  given = [each for each in words if FLAG.match(each)]
  named = {each.lstrip("-").partition("=")[0] for each in given}
  # The word may be one of several values that a flag before it has.
  before = words[: words.index(word)]
  last = next((each for each in reversed(before) if FLAG.match(each)), "")
  flag = own.get(last.lstrip("-").partition("=")[0])
  if flag and flag.kind in ("ints", "places"):
    rest = itertools.takewhile(
      lambda each: not FLAG.match(each), words[words.index(last) + 1 :]
    )
    values = ",".join([last.partition("=")[2], *rest])
    joined = ",".join(filter(None, values.split(",")))
    return (
      f"{brief(word)} comes after a space; did you mean --{flag.name}={joined}?"
    )
  for flag in own.values():
    place = flag.required and flag.kind.startswith("place")
    if place and flag.name not in named:
      return f"{brief(word)} is no flag; did you mean --{flag.name}={word}?"
  return f"{brief(word)} is no flag; pass --name=value"


def unknown(name: str, flag: str) -> str:
  """The message about a flag that a command does not have."""
  known = flag.split(".")[0]
  own = [each.name for each in COMMANDS[name].flags]
  if known == "config" and known in own:
    # Without --config, ml_collections does not know the fields of the config.
    return f"--config is missing; see diffdistill {name} --help"
  if any(known == e.name for each in COMMANDS.values() for e in each.flags):
    reads = ", ".join(f"--{each}" for each in own) or "no flag"
    return f"{name} does not read --{known}; pass {reads}"
  close = similar(flag, own)
  help_ = f"see diffdistill {name} --help"
  remedy = f"did you mean --{close}?" if close else help_
  return f"--{flag} is no flag of {name}; {remedy}"


def problem(error: Exception, words: Sequence[str]) -> str:
  """The error of absl, ml_collections or a config file, in one plain line."""
  # An error may hold another error, and str() quotes the text of a KeyError.
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  lines = message.strip().splitlines() or [""]
  for flag in (word.split("=")[0] for word in words):
    if "config." in flag and lines[0].strip("'\"") in flag.split("."):
      close = re.search(r'Did you mean "(.+?)"', lines[-1])
      remedy = f"did you mean {close[1]}?" if close else "add it to its file"
      return f"{flag} is no field of the config; {remedy}"
  if missing := re.match(r"Missing value for flag (\S+)", message):
    return f"{missing[1]} has no value; pass {missing[1]}=VALUE"
  # The value in the message may have several lines.
  flag, _, said = " ".join(lines).removeprefix("flag ").partition(": ")
  for unreadable, remedy in _UNREADABLE:
    if unreadable in said:
      return f"{flag} cannot be read; {remedy}"
  if said.startswith("Error whilst parsing config file"):
    # A traceback follows; its last line is "ValueError: what is wrong".
    return f"{flag}: {lines[-1].partition(': ')[2] or lines[-1]}"
  if isinstance(error, absl_flags.Error):
    return message
  return (
    f"--config cannot be read ({type(error).__name__}: {lines[-1].strip()});"
    " pass a recipe, such as digits:progressive, or FILE.py:RECIPE, and fields"
    " as --config.FIELD=VALUE"
  )


def without_value(word: str) -> str:
  """The message about a field of the config that has no value."""
  return f"{word} has no value; pass {word}=VALUE"

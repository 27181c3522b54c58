"""Reads the words of a command line as arguments of the command's function.

absl and ml_collections split the words and read the config. The table of
commands says which values are allowed. This file does not import JAX, so that
wrong flags are refused at once.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from diffdistill.cli.command import HOSTS, Command, Flag
from diffdistill.cli.commands import COMMANDS
from diffdistill.cli.usage import similar
from diffdistill.ranges import brief
from diffdistill.run import recipes
from diffdistill.system.places import place, places
from diffdistill.system.refusals import UsageError

# Matches --config, --config.FIELD, and --noconfig.FIELD, which means False.
_CONFIG = re.compile(r"--?((?:no)?config(?:\.[^=]*)?)(?:=(.*))?", re.DOTALL)
_FLAG = re.compile(r"--?[A-Za-z]")
# absl adds these flags to every program.
_OF_ABSL = ("flagfile", "undefok")
# Pairs: a part of a library's error message, and the remedy to print instead.
_UNREADABLE = (
  ("invalid literal for int", "pass a whole number"),
  ("could not convert string to float", "pass a number"),
  ("Non-boolean argument", "pass True or False"),
)


def read(name: str, words: Sequence[str]) -> dict[str, Any]:
  """Reads and checks the value of each flag; a path is still a text.

  Args:
    name: the name of the command.
    words: the words of the command line after the name.

  Raises:
    UsageError: if a flag is wrong or missing.
  """
  config, others = _split(words)
  parsed = _parsed(name, config, others)
  values: dict[str, Any] = {}
  for flag in COMMANDS[name].flags:
    value = parsed[flag.name]
    if value is None and flag.required:
      raise UsageError(
        f"--{flag.name} is missing; see diffdistill {name} --help"
      )
    if flag.kind == "config words":
      values[flag.name] = config
    elif value is None or flag.kind in ("config", "switch"):
      values[flag.name] = flag.default if value is None else value
    else:
      values[flag.name] = _value(flag, value)
  return values


def arguments(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of a command's function, by parameter.

  Args:
    command: the command.
    values: the result of `read`.

  Raises:
    ValueError: if a path or the address of a bucket cannot be reached.
  """
  return {
    flag.parameter or flag.name: _resolved(flag, values[flag.name])
    for flag in command.flags
    if flag not in HOSTS
  }


def _resolved(flag: Flag, value: Any) -> Any:
  if value is None:
    return None
  if flag.kind == "place":
    return place(f"--{flag.name}", value)
  if flag.kind == "places":
    return places(f"--{flag.name}", value)
  return value


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits a command line into the words of the config and all other words.

  --config comes first, because ml_collections reads the fields from it.
  """
  config: list[str] = []
  fields, others = [], []
  rest = list(words)
  while rest:
    word = rest.pop(0)
    found = _CONFIG.fullmatch(word)
    if not found:
      others.append(word)
      continue
    name, value = found.groups()
    if value is None and rest and not _FLAG.match(rest[0]):
      value = rest.pop(0)
    if value is not None and name == "config":
      config.append(f"--config={value}")
    elif value is None:
      fields.append(f"--{name}")
    else:
      fields.append(f"--{name}={value}")
  if len(config) > 1:
    raise UsageError(f"--config is given {len(config)} times; pass it once")
  return config + fields, others


def _parsed(
  name: str, config: Sequence[str], others: Sequence[str]
) -> dict[str, Any]:
  """The value of each flag, as absl reads it; most values are still texts.

  Raises:
    UsageError: if a word is no flag of the command, or if the config cannot be
      read.
  """
  words = [name, *map(_located, config), *others]
  for word in others:
    flag = word.lstrip("-").partition("=")[0]
    if word.startswith("-") and flag in _OF_ABSL:
      raise UsageError(_unknown(name, flag))
  values = absl_flags.FlagValues()
  try:
    for flag in COMMANDS[name].flags:
      _define(flag, values, words)
    _, *rest = values(words)
    if "config" in values:
      # This reads the config file now, so that its errors are raised here.
      hasattr(values["config"].value, "items")
  except absl_flags.UnrecognizedFlagError as error:
    raise UsageError(_unknown(name, error.flagname)) from error
  except Exception as error:
    # A config file is a Python program, which can raise any error.
    raise UsageError(_problem(error, words)) from error
  if rest:
    raise UsageError(_stray(name, rest[0], others))
  # Without this call, absl's logging warns that its own flags are not parsed.
  absl_flags.FLAGS.mark_as_parsed()
  return {flag: values[flag].value for flag in values}


def _located(word: str) -> str:
  """Replaces the name of a recipe in a config word by the path of its file."""
  flag, _, value = word.partition("=")
  if flag != "--config":
    return word
  if not value:
    raise UsageError(
      "--config is empty; pass a recipe, such as digits:progressive"
    )
  try:
    return f"{flag}={recipes.located(value)}"
  except ValueError as error:
    raise UsageError(str(error)) from error


def _define(
  flag: Flag, values: absl_flags.FlagValues, words: Sequence[str]
) -> None:
  if flag.kind in ("config", "config words"):
    config_flags.DEFINE_config_file(
      flag.name, None, flag.help, flag_values=values, sys_argv=list(words)
    )
  elif flag.kind == "switch":
    absl_flags.DEFINE_bool(
      flag.name, bool(flag.default), flag.help, flag_values=values
    )
  else:
    absl_flags.DEFINE_multi_string(
      flag.name, None, flag.help, flag_values=values
    )


def _value(flag: Flag, texts: Sequence[str]) -> Any:
  """The checked value of a flag.

  Args:
    flag: the flag.
    texts: the text of the value, for each time that the flag was given.

  Raises:
    UsageError: if the value is not allowed, or is given twice.
  """
  text, *others = texts
  if "" in texts:
    remedy = "pass a value" if flag.required else "pass a value or leave it out"
    raise UsageError(f"--{flag.name} is empty; {remedy}")
  if flag.kind == "places":
    return texts
  if others:
    raise UsageError(f"--{flag.name} is given {len(texts)} times; pass it once")
  if flag.choices and text not in flag.choices:
    raise UsageError(
      f"--{flag.name} is {brief(text)}; pass one of {', '.join(flag.choices)}"
    )
  if flag.range is None:
    return text
  value = _number(flag, text)
  for number in value if isinstance(value, tuple) else (value,):
    refusal = flag.range.refusal(number)
    if refusal:
      raise UsageError(f"--{flag.name} is {brief(number)}; {refusal}")
  return value


def _number(flag: Flag, text: str) -> int | float | tuple[int, ...]:
  """The number, or the tuple of numbers, in a text."""
  remedy = "pass a number"
  if flag.kind == "float":
    try:
      return float(text)
    except ValueError:
      pass
  elif flag.kind == "int":
    remedy = "pass a whole number"
    if _whole(text):
      return int(text)
  else:
    remedy = "pass whole numbers: 1,2,4"
    parts = [part.strip() for part in text.split(",")]
    if all(map(_whole, parts)):
      return tuple(map(int, parts))
  raise UsageError(f"--{flag.name} is {brief(text)}; {remedy}")


def _whole(text: str) -> bool:
  # int() raises an error for more than 4,300 digits.
  return bool(re.fullmatch(r"[+-]?[0-9]{1,1000}", text))


def _stray(name: str, word: str, words: Sequence[str]) -> str:
  """The message about a word that is neither a flag nor the value of one."""
  own = {flag.name: flag for flag in COMMANDS[name].flags}
  given = [each for each in words if _FLAG.match(each)]
  named = {each.lstrip("-").partition("=")[0] for each in given}
  # The word may be one of several values that a flag before it has.
  before = words[: words.index(word)]
  last = next((each for each in reversed(before) if _FLAG.match(each)), "")
  flag = own.get(last.lstrip("-").partition("=")[0])
  if flag and flag.kind in ("ints", "places"):
    rest = itertools.takewhile(
      lambda each: not _FLAG.match(each), words[words.index(last) + 1 :]
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


def _unknown(name: str, flag: str) -> str:
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


def _problem(error: Exception, words: Sequence[str]) -> str:
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
  flag, _, problem = " ".join(lines).removeprefix("flag ").partition(": ")
  for unreadable, remedy in _UNREADABLE:
    if unreadable in problem:
      return f"{flag} cannot be read; {remedy}"
  if problem.startswith("Error whilst parsing config file"):
    # A traceback follows; its last line is "ValueError: what is wrong".
    return f"{flag}: {lines[-1].partition(': ')[2]}"
  if isinstance(error, absl_flags.Error):
    return message
  return (
    f"--config cannot be read ({type(error).__name__}: {lines[-1].strip()});"
    " pass a recipe, such as digits:progressive, or FILE.py:RECIPE"
  )

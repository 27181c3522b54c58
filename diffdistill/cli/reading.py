"""Reads the words of a command line as arguments of the command's function.

absl and ml_collections split the words and read the config. The table of
commands says which values are allowed. This file does not import JAX, so that
wrong flags are refused at once.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from diffdistill.cli.command import HOSTS, Command, Flag
from diffdistill.cli.commands import COMMANDS
from diffdistill.cli.mistakes import (
  FLAG,
  problem,
  stray,
  unknown,
  without_value,
)
from diffdistill.ranges import brief
from diffdistill.run import recipes
from diffdistill.system.places import place, places
from diffdistill.system.refusals import UsageError

# Matches --config, --config.FIELD, and --noconfig.FIELD, which means False.
_CONFIG = re.compile(r"--?((?:no)?config(?:\.[^=]*)?)(?:=(.*))?", re.DOTALL)
_FIELD = re.compile(r"(?:no)?config(?:\.\w+(?:\[\d+\])?)+")
# absl adds these flags to every program.
_OF_ABSL = ("flagfile", "undefok")


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
  fields: dict[str, str] = {}
  others = []
  rest = list(words)
  while rest:
    word = rest.pop(0)
    found = _CONFIG.fullmatch(word)
    if not found:
      others.append(word)
      continue
    name, value = found.groups()
    if value is None and rest and not FLAG.match(rest[0]):
      value = rest.pop(0)
    if name in fields or (name == "config" and config):
      raise UsageError(f"--{name} is given 2 times; pass it once")
    if name == "config":
      if value is None:
        raise UsageError("--config has no value; pass --config=RECIPE")
      config.append(f"--config={value}")
    elif not _FIELD.fullmatch(name):
      raise UsageError(
        f"--{name} is no field of the config; pass --config.FIELD=VALUE"
      )
    else:
      fields[name] = f"--{name}" if value is None else f"--{name}={value}"
  return [*config, *fields.values()], others


def _parsed(
  name: str, config: Sequence[str], others: Sequence[str]
) -> dict[str, Any]:
  """The value of each flag, as absl reads it; most values are still texts.

  Raises:
    UsageError: if a word is no flag of the command, or if the config cannot be
      read.
  """
  # absl would take the word after a field without a value for its value.
  bare = [word for word in config if word.startswith("--c") and "=" not in word]
  given = [f"{word}=true" if word in bare else word for word in config]
  words = [name, *map(_located, given), *others]
  for word in others:
    flag = word.lstrip("-").partition("=")[0]
    if word.startswith("-") and flag in _OF_ABSL:
      raise UsageError(unknown(name, flag))
  values = absl_flags.FlagValues()
  try:
    for flag in COMMANDS[name].flags:
      _define(flag, values, words)
    _, *rest = values(words)
    # This reads the config file now, so that its errors are raised here.
    read = values["config"].value if "config" in values else None
  except absl_flags.UnrecognizedFlagError as error:
    raise UsageError(unknown(name, error.flagname)) from error
  except Exception as error:
    # A config file is a Python program, which can raise any error.
    said = problem(error, words)
    for word in bare:
      if said.startswith(f"{word}=true cannot be read"):
        said = without_value(word)
    raise UsageError(said) from error
  if rest:
    raise UsageError(stray(name, rest[0], others))
  if config and config[0].startswith("--config=") and read is None:
    raise UsageError(
      f"{config[0]} has no config; let its get_config(recipe) return a"
      " ConfigDict"
    )
  for word in bare:
    if operator.attrgetter(word.partition(".")[2])(read) is not True:
      raise UsageError(without_value(word))
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

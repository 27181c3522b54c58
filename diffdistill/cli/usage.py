"""Writes the help of the command line, from the table of commands.

This file imports no slow library, so that the help is printed at once.
"""

import difflib
import textwrap
from collections.abc import Collection, Sequence

from diffdistill.cli.command import CONFIG, HOSTS, Command, Flag
from diffdistill.cli.commands import COMMANDS
from diffdistill.system.refusals import UsageError
from diffdistill.version import VERSION

HELP = ("--help", "-h", "-help")
WIDTH, COLUMN = 80, 26
# The text for the value of a flag in the help, by the flag's kind.
FORMS = {
  "text": "NAME",
  "int": "N",
  "ints": "N,N",
  "float": "NUMBER",
  "place": "PATH",
  "places": "PATH",
}
OVERRIDE = (
  "Changes a field of the config, such as --config.seed=1. May be repeated."
)
STATUSES = {
  0: "done",
  1: "refused: one line says what is wrong and what to do",
  2: "bad usage: one line says which word or flag",
  70: "it hung, or one of several processes failed or was lost",
  75: "told to leave by SIGTERM or SIGHUP",
  130: "interrupted",
}


def answer(words: Sequence[str]) -> str | None:
  """The help or the version, if a command line asks for it; else None.

  Raises:
    UsageError: if the words ask for help about a command that does not exist.
  """
  first, *others = words or ["help"]
  if first == "--version":
    return f"diffdistill {VERSION}"
  if first == "help" and others:
    first, others = others[0], ["--help"]
  if first in ("help", *HELP):
    return overview()
  return explanation(first) if set(HELP) & set(others) else None


def find(name: str, words: Sequence[str] = ()) -> Command:
  """The command of this name.

  Args:
    name: the first word of the command line.
    words: the other words of the command line.

  Raises:
    UsageError: if no command has this name.
  """
  if name in COMMANDS:
    return COMMANDS[name]
  if name.startswith("-"):
    first = next((word for word in words if word in COMMANDS), "COMMAND")
    others = " ".join(word for word in (name, *words) if word != first)
    raise UsageError(
      f"{name} comes before the command; run diffdistill {first} {others}"
    )
  close = similar(name, COMMANDS)
  every = ", ".join(COMMANDS)
  remedy = f"did you mean {close}?" if close else f"pass one of {every}"
  raise UsageError(f"{name!r} is no command; {remedy}")


def similar(name: str, names: Collection[str]) -> str:
  """The name with the most similar spelling; empty if no name is similar."""
  return next(iter(difflib.get_close_matches(name, names, 1)), "")


def overview() -> str:
  """The list of commands, one line each."""
  lines = (f"  {name:<11}{each.summary}." for name, each in COMMANDS.items())
  return "\n".join(
    (
      "usage: diffdistill COMMAND [--flag=value ...]\n",
      *lines,
      "\n`diffdistill COMMAND --help` explains a command and its flags.",
    )
  )


def explanation(name: str) -> str:
  """The help of one command: its flags, an example and the exit statuses."""
  command = find(name)
  required = [_label(flag) for flag in command.flags if flag.required]
  optional = CONFIG in command.flags or len(required) < len(command.flags)
  call = ["usage: diffdistill", name, *required]
  own = [flag for flag in command.flags if flag not in HOSTS]
  shared = [flag for flag in command.flags if flag in HOSTS]
  example = f"diffdistill {name} {command.example}".strip()
  parts = (
    [" ".join([*call, "[--flag=value ...]"] if optional else call)],
    textwrap.wrap(command.about, WIDTH),
    _flag_lines(own),
    ["on several hosts:", *_flag_lines(shared)] if shared else [],
    ["example:", "  " + " \\\n    ".join(_wrapped(example, WIDTH - 6))],
    ["exit status:", *(f"  {n:<5}{STATUSES[n]}" for n in STATUSES)],
    textwrap.wrap(f"After 70, 75 and 130: {command.again}.", WIDTH),
  )
  return "\n\n".join("\n".join(lines) for lines in parts if lines)


def default(flag: Flag) -> str:
  """A text that says what happens if a flag is not given."""
  if flag.required:
    return "Required."
  value = flag.default
  if isinstance(value, bool):
    value = "on" if value else "off"
  elif isinstance(value, tuple):
    value = ",".join(map(str, value))
  elif isinstance(value, float):
    value = f"{value:g}"
  return f"Default: {flag.unset or value}."


def _label(flag: Flag) -> str:
  form = flag.form or FORMS.get(flag.kind)
  return f"--{flag.name}={form}" if form else f"--{flag.name}"


def _flag_lines(flags: Sequence[Flag]) -> list[str]:
  lines = []
  for flag in flags:
    words = [flag.help]
    if flag.choices:
      words.append(f"One of {', '.join(flag.choices)}.")
    if flag.range:
      words.append(f"From {flag.range.least:,} to {flag.range.most:,}.")
    lines += _row(_label(flag), " ".join([*words, default(flag)]))
    if flag.name == "config":
      lines += _row("--config.FIELD=VALUE", OVERRIDE)
  return lines


def _row(label: str, text: str) -> list[str]:
  """The lines of a help entry: a label on the left, its text on the right."""
  first, *others = _wrapped(text, WIDTH - COLUMN)
  return [
    f"  {label:<{COLUMN - 2}}{first}",
    *(" " * COLUMN + line for line in others),
  ]


def _wrapped(text: str, width: int) -> list[str]:
  """Breaks a text into lines of at most `width` letters, between words."""
  return textwrap.wrap(
    text, width, break_long_words=False, break_on_hyphens=False
  )

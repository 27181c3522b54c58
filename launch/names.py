"""Names that a launcher passes on, and values that it must not print.

Every flag ends up in a command line, in a manifest or in a comment of one. What
is checked here cannot become anything else there.
"""

import argparse
import re
from collections.abc import Sequence

HIDDEN = "(hidden)"
# Short values, such as 1, are found in all kinds of text.
_SECRET_LENGTH = 6
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# flag: (pattern, what to pass). RFC 1123 labels and subdomains are what
# Kubernetes takes ("Object Names and IDs", kubernetes.io/docs/concepts).
_NAMES = {
  "name": (
    r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
    "at most 40 lower-case letters, digits and hyphens, a letter first and no"
    " hyphen last",
  ),
  "namespace": (
    _LABEL,
    "at most 63 lower-case letters, digits and hyphens, and no hyphen at"
    " an end",
  ),
  "service_account": (
    rf"{_LABEL}(\.{_LABEL})*",
    "the name of one: lower-case letters, digits, hyphens and dots",
  ),
  "gpu": (_LABEL, "GKE's name of one, such as nvidia-h100-80gb"),
  "image": (r"[\w][\w./:@-]*", "REGISTRY/NAME:TAG"),
  "extras": (r"[a-z0-9_-]*(,[a-z0-9_-]+)*", "names with commas between them"),
  "project": (r"[a-z][a-z0-9.:-]*", "the id of a project of Google Cloud"),
  "zone": (r"[a-z][a-z0-9-]*", "a zone such as us-west4-a"),
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def complaint(flags: argparse.Namespace) -> str:
  """What is wrong with the first flag that is no such name; "" if none is."""
  for flag, value in vars(flags).items():
    if flag == "env":
      continue
    for text in value if isinstance(value, list) else [value]:
      if isinstance(text, str) and not text.isprintable():
        return (
          f"--{flag} is {text!r}; pass one line of characters that can be"
          " printed"
        )
    pattern, wanted = _NAMES.get(flag, ("", ""))
    if pattern and value is not None and not re.fullmatch(pattern, value):
      return f"--{flag} is {value!r}; pass {wanted}"
  return _complaint_of_variables(flags.env)


def _complaint_of_variables(pairs: Sequence[str]) -> str:
  """The same of NAME=VALUE; the message never has a value."""
  for pair in pairs:
    name, equals, value = pair.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
      return (
        "--env has a variable without a name of letters, digits and"
        " underscores; pass NAME=VALUE"
      )
    if not value.isprintable():
      return (
        f"--env={name}=... has a line break or a character that cannot be"
        " printed; pass one line"
      )
  return ""


def masked(pairs: Sequence[str]) -> list[str]:
  """NAME=VALUE pairs, each without its value."""
  return [f"{pair.partition('=')[0]}={HIDDEN}" for pair in pairs]


def without_values(text: str, pairs: Sequence[str]) -> str:
  """A text, such as a program's error, without the values of variables."""
  for pair in pairs:
    name, _, value = pair.partition("=")
    if value:
      text = text.replace(pair, f"{name}={HIDDEN}")
    if len(value) >= _SECRET_LENGTH:
      text = text.replace(value, HIDDEN)
  return text

"""The program's text: in UTF-8, on streams whose reader may leave.

This file imports nothing that takes long: the program may begin anew in it.
"""

import io
import os
import sys
from typing import Any


def outlive_readers() -> None:
  """Lets the standard streams take any text, and outlive their readers."""
  sys.stdout, sys.stderr = _stream(sys.stdout), _stream(sys.stderr)


def flushed(status: int) -> int:
  """The exit status, once the output is written: 1 if it cannot be."""
  try:
    sys.stdout.flush()
  except OSError as error:
    _to_nowhere(sys.stdout.fileno())
    if not status:
      sys.stderr.write(f"diffdistill: the output is cut: {error.strerror}\n")
    return status or 1
  return status


def speak_utf8() -> None:
  """Begins anew in UTF-8 where Python uses the encoding of another locale.

  Libraries take the names of files in UTF-8 whatever the locale says.
  """
  if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
    return
  os.environ["PYTHONUTF8"] = "1"
  # The option is for a Python that is told to ignore its variables.
  arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
  os.execv(sys.executable, arguments)


class _Pipe(io.FileIO):
  """A stream whose reader may leave, as `head` does: the rest goes nowhere."""

  def write(self, data, /):
    try:
      return super().write(data)
    except BrokenPipeError:
      _to_nowhere(self.fileno())
      return super().write(data)


def _to_nowhere(number: int) -> None:
  """Lets an open file take and forget whatever is written."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, number)
  os.close(nowhere)


def _stream(stream: Any) -> Any:
  """A standard stream that takes any text, and outlives its reader."""
  if stream is None:
    return open(os.devnull, "w", encoding="utf-8")
  stream.flush()
  return io.TextIOWrapper(
    io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False)),
    encoding="utf-8",
    errors="backslashreplace",
    line_buffering=stream.line_buffering,
  )

"""Makes standard streams accept any text and survive a reader that ends.

This file imports nothing slow, because the program may restart in it.
"""

import io
import os
import sys
from typing import Any


def outlive_readers() -> None:
  """Makes the standard streams accept any text and survive their readers."""
  sys.stdout, sys.stderr = _stream(sys.stdout), _stream(sys.stderr)


def flushed(status: int) -> int:
  """Flushes the output; returns the exit status, or 1 if flushing fails."""
  try:
    sys.stdout.flush()
  except OSError as error:
    _to_nowhere(sys.stdout.fileno())
    if not status:
      sys.stderr.write(
        f"diffdistill: the output is incomplete: {error.strerror}\n"
      )
    return status or 1
  return status


def speak_utf8() -> None:
  """Restarts Python in UTF-8 if it uses the encoding of another locale.

  Libraries use UTF-8 for the names of files, in every locale.
  """
  if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
    return
  os.environ["PYTHONUTF8"] = "1"
  # Pass an option, because Python may be told to ignore environment variables.
  arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
  os.execv(sys.executable, arguments)


class _Pipe(io.FileIO):
  """A stream that drops later output if its reader leaves, as `head` does."""

  def write(self, data, /):
    try:
      return super().write(data)
    except BrokenPipeError:
      _to_nowhere(self.fileno())
      return super().write(data)


def _to_nowhere(number: int) -> None:
  """Redirects an open file to the null device, which drops all output."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, number)
  os.close(nowhere)


def _stream(stream: Any) -> Any:
  """Returns a standard stream that accepts any text and survives its reader."""
  if stream is None:
    return open(os.devnull, "w", encoding="utf-8")
  stream.flush()
  return io.TextIOWrapper(
    io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False)),
    encoding="utf-8",
    errors="backslashreplace",
    line_buffering=stream.line_buffering,
  )

"""Reads and writes metrics.jsonl: one record on each line, with a checksum.

The last field of a record, "crc", is the CRC-32 of the other fields, as JSON
with sorted keys, in 8 hexadecimal digits. A reader skips the lines that do not
match their checksums, and names them in one warning.
"""

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.system.files import (
  finite,
  in_bucket,
  naming,
  read_bytes,
  write_atomically,
)

FILE = "metrics.jsonl"
CHECKSUM = "crc"
# The file of records in a bucket is written at most this often.
SECONDS_BETWEEN_UPLOADS = 10.0
# A warning names at most this many lines.
NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
  """The records of one run.

  Args:
    path: the file of the records.
    good: a tuple for each undamaged line, in order: the text of the line, and
      the record in it.
    damaged: the numbers of the damaged lines, counted from 1.
  """

  path: epath.Path
  good: Sequence[tuple[bytes, dict[str, Any]]] = ()
  damaged: Sequence[int] = ()

  @property
  def warning(self) -> str:
    """Names the damaged lines in one line of text; empty if there are none."""
    if not self.damaged:
      return ""
    named = ", ".join(map(str, self.damaged[:NAMED]))
    if len(self.damaged) > NAMED:
      named += f" and {len(self.damaged) - NAMED} more"
    one = len(self.damaged) == 1
    return (
      f"{self.path}: {'line' if one else 'lines'} {named}"
      f" {'is' if one else 'are'} damaged and skipped"
    )


def read_records(workdir: epath.Path) -> Records:
  """Reads the records of a run; a run without a file of records has none.

  Raises:
    OSError: if the file cannot be read.
  """
  path = workdir / FILE
  try:
    text = read_bytes(path)
  except FileNotFoundError:
    return Records(path=path)
  return _records(path, text)


def _records(path: epath.Path, text: bytes) -> Records:
  good, damaged = [], []
  for number, line in enumerate(text.split(b"\n"), start=1):
    if not line:
      continue  # The empty text after the last newline.
    record = _parsed(line)
    if record is None:
      damaged.append(number)
    else:
      good.append((line, record))
  return Records(path=path, good=good, damaged=damaged)


def keep_records(
  workdir: epath.Path,
  wanted: Callable[[Mapping[str, Any]], bool],
  say: Callable[[str], None],
) -> None:
  """Removes damaged lines and unwanted records from the file.

  A process that is killed while it writes leaves a part of a line.

  Args:
    workdir: the folder of the run.
    wanted: returns whether to keep a record.
    say: is called with a text that names the damaged lines.
  """
  path = workdir / FILE
  try:
    text = read_bytes(path)
  except FileNotFoundError:
    return
  records = _records(path, text)
  if records.warning:
    say(records.warning)
  kept = b"".join(
    line + b"\n" for line, record in records.good if wanted(record)
  )
  # If the last newline is missing, the next record would continue that line.
  if text != kept:
    write_atomically(path, kept)


def append_record(workdir: epath.Path, fields: Mapping[str, Any]) -> None:
  """Appends a record, whole or not at all.

  Args:
    workdir: the folder of the run.
    fields: "round", "step" and more. Numbers that are not finite become null.

  Raises:
    OSError: if the record cannot be written, for example on a full disk.
  """
  path = workdir / FILE
  line = _line(fields)
  with naming(path), open(path, "ab", buffering=0) as file:
    size, written = file.tell(), 0
    try:
      while written < len(line):
        written += file.write(line[written:])
    except OSError:
      file.truncate(size)
      raise


def rename_rounds(workdir: epath.Path, names: Mapping[str, str]) -> None:
  """Gives the records of some rounds a new name.

  Args:
    workdir: the folder of the run.
    names: the new name of each round, by its old name.
  """
  lines = []
  for line, record in read_records(workdir).good:
    new = names.get(record["round"])
    lines.append(_line({**record, "round": new}) if new else line + b"\n")
  if lines:
    write_atomically(workdir / FILE, b"".join(lines))


class Appended:
  """The file of records of a run that goes on; only one process writes it.

  On a disk, each record is appended at once. An object in a bucket cannot be
  appended to, and may be written only once a second. So the file is written
  again at most every SECONDS_BETWEEN_UPLOADS, and when `flush` is called, which
  must happen before a checkpoint is saved.

  Args:
    workdir: the folder of the run.
    now: returns the seconds of a clock that never goes back.
  """

  def __init__(
    self, workdir: epath.Path, now: Callable[[], float] = time.monotonic
  ):
    self._workdir = workdir
    self._now = now
    self._text: bytes | None = None
    self._waiting = False
    self._written = -math.inf

  def keep(
    self,
    wanted: Callable[[Mapping[str, Any]], bool],
    say: Callable[[str], None],
  ) -> None:
    """Removes damaged lines and unwanted records; see `keep_records`."""
    self.flush()
    self._text = None
    keep_records(self._workdir, wanted, say)

  def append(self, fields: Mapping[str, Any]) -> None:
    """Appends a record, or keeps it until the next upload.

    Raises:
      OSError: if the record cannot be written, for example on a full disk.
    """
    if not in_bucket(self._workdir):
      append_record(self._workdir, fields)
      return
    if self._text is None:
      try:
        self._text = read_bytes(self._workdir / FILE)
      except FileNotFoundError:
        self._text = b""
    self._text += _line(fields)
    self._waiting = True
    if self._now() - self._written >= SECONDS_BETWEEN_UPLOADS:
      self.flush()

  def flush(self) -> None:
    """Writes the records that wait for the next upload, if there are any."""
    if self._waiting:
      write_atomically(self._workdir / FILE, self._text or b"")
      self._waiting, self._written = False, self._now()


def _line(fields: Mapping[str, Any]) -> bytes:
  record = finite(dict(fields))
  text = json.dumps({**record, CHECKSUM: _checksum(record)})
  return text.encode() + b"\n"


def _checksum(record: Mapping[str, Any]) -> str:
  text = json.dumps(record, sort_keys=True)
  return f"{zlib.crc32(text.encode()):08x}"


def _parsed(line: bytes) -> dict[str, Any] | None:
  """Returns a line's record without its checksum; None if it is damaged."""
  try:
    record = json.loads(line)
    if record.pop(CHECKSUM) != _checksum(record):
      return None
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return None
  step = record.get("step")
  if not isinstance(record.get("round"), str) or type(step) is not int:
    return None
  return record

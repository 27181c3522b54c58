"""Reads and writes metrics.jsonl: one record on each line, with a checksum.

The last field of a record, "crc", is the CRC-32 of the other fields, as JSON
with sorted keys, in 8 hexadecimal digits. A reader skips the lines that do not
match their checksums, and names them in one warning.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.system.files import finite, in_bucket, naming, write_atomically

FILE = "metrics.jsonl"
CHECKSUM = "crc"
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
  if not path.exists():
    return Records(path=path)
  good, damaged = [], []
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
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
  records = read_records(workdir)
  if records.warning:
    say(records.warning)
  kept = b"".join(
    line + b"\n" for line, record in records.good if wanted(record)
  )
  # If the last newline is missing, the next record would continue that line.
  if records.path.exists() and records.path.read_bytes() != kept:
    write_atomically(records.path, kept)


def append_record(workdir: epath.Path, fields: Mapping[str, Any]) -> None:
  """Appends a record, whole or not at all.

  Args:
    workdir: the folder of the run.
    fields: "round", "step" and more. Numbers that are not finite become null.

  Raises:
    OSError: if the record cannot be written, for example on a full disk.
  """
  path = workdir / FILE
  record = finite(dict(fields))
  line = json.dumps({**record, CHECKSUM: _checksum(record)}).encode() + b"\n"
  if in_bucket(path):
    # An object in a bucket cannot be appended to, so the whole file is written
    # again.
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + line)
    return
  with naming(path), open(path, "ab", buffering=0) as file:
    size, written = file.tell(), 0
    try:
      while written < len(line):
        written += file.write(line[written:])
    except OSError:
      file.truncate(size)
      raise


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

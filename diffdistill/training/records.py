"""metrics.jsonl: one record a line, each with a checksum of itself.

The last field of a record, "crc", is the CRC-32 of the others as JSON with
sorted keys, in 8 hexadecimal digits. A line that does not match its checksum is
skipped by whoever reads it, and named in one warning.
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
# A warning names so many lines at most.
NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
  """The records of a workdir.

  Args:
    path: of the file.
    good: (line as it is in the file, record), in order.
    damaged: the numbers of the lines that cannot be read, from 1.
  """

  path: epath.Path
  good: Sequence[tuple[bytes, dict[str, Any]]] = ()
  damaged: Sequence[int] = ()

  @property
  def warning(self) -> str:
    """One line about what cannot be read; empty if all can be."""
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
  """The records of a workdir; none if nothing is recorded yet.

  Raises:
    OSError: if the file cannot be read.
  """
  path = workdir / FILE
  if not path.exists():
    return Records(path=path)
  good, damaged = [], []
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
    if not line:
      continue  # What follows the last line's end.
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
  """Removes the records that are not wanted, and damaged lines.

  A process that is killed while it writes leaves a part of a line behind.

  Args:
    workdir: of the run.
    wanted: whether to keep a record.
    say: is told which lines were damaged.
  """
  records = read_records(workdir)
  if records.warning:
    say(records.warning)
  kept = b"".join(
    line + b"\n" for line, record in records.good if wanted(record)
  )
  # The last line's end may be missing, which the next record would continue.
  if records.path.exists() and records.path.read_bytes() != kept:
    write_atomically(records.path, kept)


def append_record(workdir: epath.Path, fields: Mapping[str, Any]) -> None:
  """Appends a record, whole or not at all.

  Args:
    workdir: of the run.
    fields: "round", "step" and more. What is no finite number becomes null.

  Raises:
    OSError: if it cannot be written, such as on a full disk.
  """
  path = workdir / FILE
  record = finite(dict(fields))
  line = json.dumps({**record, CHECKSUM: _checksum(record)}).encode() + b"\n"
  if in_bucket(path):
    # Objects cannot be appended to.
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
  """The record of a line without its checksum; None if it is damaged."""
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

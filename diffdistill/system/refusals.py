"""Says which errors a person can repair, and makes the line that says how."""

import errno
from pathlib import Path
from types import TracebackType

from diffdistill.system import bucket_faults

LONGEST_LINE = 1000
# The remedies for errors of the operating system, by their error number.
REMEDIES = {
  errno.ENOSPC: "free some space there, and run the same command again",
  errno.EDQUOT: "free some space there, and run the same command again",
  errno.EROFS: "pass a place that can be written",
  errno.EACCES: "pass a place that you may read and write",
  errno.EPERM: "pass a place that you may read and write",
  errno.EFBIG: "pass a place on a disk that allows larger files",
  errno.ELOOP: "pass a place without a loop of links",
  errno.EMFILE: "allow more open files with `ulimit -n`",
  errno.ENAMETOOLONG: "pass a shorter name",
  errno.EIO: "check the disk or its mount, and run the same command again",
  errno.ESTALE: "mount its disk again, and run the same command again",
  errno.ENODEV: "mount its disk again, and run the same command again",
  errno.ENXIO: "mount its disk again, and run the same command again",
}
# Other errors of the operating system that a person can repair. A broken
# connection is missing on purpose.
MENDABLE = (
  FileNotFoundError,
  FileExistsError,
  PermissionError,
  NotADirectoryError,
  IsADirectoryError,
)


class UsageError(ValueError):
  """The command line is wrong: the command ends with status 2."""

  status = 2


def is_refusal(error: Exception) -> bool:
  """Returns whether a person can repair an error.

  This is so if the operating system or our code raised it. An error that a
  library raises inside our code is a fault of our code and keeps its traceback.
  The same holds for an error that Python raises, such as a TypeError.
  """
  if bucket_faults.fault(error):
    return True
  if isinstance(error, OSError):
    if isinstance(error, MENDABLE) or error.errno in REMEDIES:
      return True
    if error.errno is not None:
      return False
  own = type(error).__module__.startswith("diffdistill.")
  if not own and not isinstance(error, ValueError | OSError):
    return False
  innermost: TracebackType | None = error.__traceback__
  while innermost is not None and innermost.tb_next is not None:
    innermost = innermost.tb_next
  if innermost is None:
    return False
  raised_in = Path(innermost.tb_frame.f_code.co_filename)
  return Path(__file__).parents[1] in raised_in.parents


def line_of(error: Exception | str) -> str:
  """Returns the line that says why a command was refused."""
  if isinstance(error, Exception) and (line := bucket_faults.fault(error)):
    return line
  if isinstance(error, OSError) and error.strerror and error.errno:
    remedy = REMEDIES.get(
      error.errno, "pass a place that can be read and written"
    )
    place = error.filename or "a file"
    return " ".join(f"{place}: {error.strerror}; {remedy}".split())
  line = " ".join(str(error).split()) or type(error).__name__
  half = LONGEST_LINE // 2
  # Keep both ends of a long line, and cut its middle out.
  return (
    line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"
  )

"""What a refused command says: one line with what is wrong and the remedy."""

import errno

LONGEST_LINE = 1000
# What a person does about an error of the system.
REMEDIES = {
  errno.ENOSPC: "make room there, and the same command goes on",
  errno.EDQUOT: "make room there, and the same command goes on",
  errno.EROFS: "pass a place that can be written",
  errno.EACCES: "pass a place that you may read and write",
  errno.EPERM: "pass a place that you may read and write",
  errno.EFBIG: "pass a disk that takes larger files",
  errno.ELOOP: "pass a place whose links lead somewhere",
  errno.EMFILE: "allow more open files with `ulimit -n`",
  errno.ENAMETOOLONG: "pass a shorter name",
  errno.EIO: "check the disk or its mount, and run the same command again",
  errno.ESTALE: "mount its disk again, and run the same command again",
  errno.ENODEV: "mount its disk again, and run the same command again",
  errno.ENXIO: "mount its disk again, and run the same command again",
}


def line_of(error: Exception | str) -> str:
  """The line that says why a command was refused."""
  if isinstance(error, OSError) and error.strerror and error.errno:
    remedy = REMEDIES.get(
      error.errno, "pass a place that can be read and written"
    )
    place = error.filename or "a file"
    return " ".join(f"{place}: {error.strerror}; {remedy}".split())
  line = " ".join(str(error).split()) or type(error).__name__
  half = LONGEST_LINE // 2
  # Of a long value both ends say enough.
  return (
    line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"
  )

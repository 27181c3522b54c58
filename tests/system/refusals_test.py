"""Tests that a refusal is one line: what is wrong, where, and the remedy."""

import errno
import os

import pytest

from diffdistill.system.refusals import line_of


@pytest.mark.parametrize(
  ("number", "remedy"),
  [
    (
      errno.ENOSPC,
      "No space left on device; free some space there, and run th",
    ),
    (
      errno.EDQUOT,
      "Disk quota exceeded; free some space there, and run the same",
    ),
    (errno.EROFS, "Read-only file system; pass a place that can be written"),
    (errno.EACCES, "Permission denied; pass a place that you may read and wri"),
    (errno.ENAMETOOLONG, "File name too long; pass a shorter name"),
    (errno.ESTALE, "Stale file handle; mount its disk again, and run the same"),
    (errno.EIO, "Input/output error; check the disk or its mount, and run the"),
    (errno.ENOENT, "No such file or directory; pass a place that can be read"),
  ],
)
def test_an_error_of_the_system_names_the_path_and_the_remedy(number, remedy):
  line = line_of(OSError(number, os.strerror(number), "/some/where"))
  assert line.startswith(f"/some/where: {remedy}")


def test_other_errors_keep_their_message_in_one_line():
  assert line_of(ValueError("a is 3;\n  pass 4")) == "a is 3; pass 4"
  assert line_of(OSError("a bucket that is away")) == "a bucket that is away"
  assert line_of(ValueError()) == "ValueError"
  assert line_of("usage") == "usage"

"""Tests that errors of a bucket are told from all other errors."""

import pathlib

import pytest

from diffdistill.system import bucket_faults
from diffdistill.system.bucket_faults import BucketError, fault


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
  monkeypatch.setattr(bucket_faults, "NAMES", {"runs"})


@pytest.fixture
def raised(tmp_path):
  """Raises an error in a file of a library, and gives the error."""

  def raise_in(library, error):
    path = pathlib.Path(tmp_path, library, "core.py")
    code = compile("raise error", str(path), "exec")
    try:
      exec(code, {"error": error})
    except BaseException as found:
      return found

  return raise_in


class HttpError(Exception):
  """An error like that of gcsfs."""

  def __init__(self, code):
    super().__init__(f"said, {code}")
    self.code = code


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (OSError("Forbidden: https://g/b/other/o\nno"), "gs://other refuses this"),
    (HttpError(403), "gs://runs refuses this account; permit this account to"),
    (
      HttpError("503"),
      "gs://runs cannot be reached (HttpError: said, 503); what",
    ),
    (
      TimeoutError(),
      "gs://runs cannot be reached (TimeoutError); what was saved",
    ),
    (
      FileNotFoundError("https://g/upload/storage/v1/b/no/o"),
      "gs://no does not exist; make it, or pass another place",
    ),
    (FileNotFoundError("https://g/storage/v1/b/runs/o/x"), ""),
    (FileExistsError("https://g/upload/storage/v1/b/runs/o"), ""),
  ],
)
def test_an_error_of_gcsfs_is_one_line(raised, error, line):
  found = raised("gcsfs", error)
  assert fault(found).startswith(line)
  assert bool(fault(found)) == bool(line)
  # The same error from elsewhere is no error of a bucket.
  assert fault(raised("elsewhere", type(error)(*error.args))) == ""


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ('PERMISSION_DENIED: Error reading "gs://runs/a"', "gs://runs refuses"),
    (
      'UNAVAILABLE: Error writing "gs://runs/a"',
      "gs://runs cannot be reached (",
    ),
    ("UNAVAILABLE: a process of the run is lost", ""),
    ('NOT_FOUND: Error opening "gs://runs/a"', ""),
  ],
)
def test_an_error_of_tensorstore_is_told_by_its_text(text, line):
  outer = ExceptionGroup("of threads", [ValueError(text)])
  found = fault(outer)
  assert found.startswith(line)
  assert bool(found) == bool(line)


def test_a_told_error_is_not_explained_again():
  assert fault(BucketError("gs://runs/a cannot be read: x")) == (
    "gs://runs/a cannot be read: x"
  )
  assert fault(ValueError("anything")) == ""

"""Explains the errors of a bucket that a person can repair.

The libraries that reach a bucket raise errors of many classes, so this file
looks at which library an error came from, and searches for texts. It imports
nothing slow, because every command imports it.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

AGAIN = "what was saved before is kept; run the same command again"
NO_PERMISSION = (
  "permit this account to list, read, write and delete objects there (role"
  " Storage Object User), or log in with `gcloud auth application-default"
  " login`"
)
# Texts in the errors of TensorStore, which has one class of error for all.
REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
SILENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
# The folder of the library that reads and writes small files in a bucket.
GCSFS = ("gcsfs",)
# An address in an error of gcsfs holds the name of the bucket.
_NAME = re.compile(r"/b/([^/\s]+)")
# The names of the buckets that this process uses.
NAMES: set[str] = set()


class BucketError(ValueError):
  """A bucket cannot be reached, or refuses an account; the message is one line.

  It is no sign that the data in the bucket is damaged.
  """


def fault(error: BaseException) -> str:
  """Explains an error of a bucket that a person can repair, in one line.

  Args:
    error: any error. The errors that caused it are searched too.

  Returns:
    What is wrong, and the remedy; "" for an error of something else.
  """
  if isinstance(error, BucketError):
    return str(error)
  if not NAMES:
    return ""
  for each in _causes(error):
    text = " ".join(str(each).split())
    named = _NAME.search(text)
    where = f"gs://{named[1]}" if named else ", ".join(_buckets())
    # TensorStore's errors name the object, and JAX's have the same words.
    words = text if "gs://" in text or "HTTP response code" in text else ""
    by_gcsfs = _raised_in(each, GCSFS)
    if any(word in words for word in REFUSED) or (
      by_gcsfs and (text.startswith("Forbidden:") or _code(each) in (401, 403))
    ):
      return f"{where} refuses this account; {NO_PERMISSION}"
    missing = isinstance(each, FileNotFoundError)
    if missing and by_gcsfs and "/upload/" in text:
      return f"{where} does not exist; make it, or pass another place"
    if any(word in words for word in SILENT) or (
      by_gcsfs and not missing and not isinstance(each, FileExistsError)
    ):
      said = f"{type(each).__name__}: {text}" if text else type(each).__name__
      return f"{where} cannot be reached ({said[:200]}); {AGAIN}"
  return ""


def _code(error: BaseException) -> int:
  """The HTTP status in an error of gcsfs; 0 if it has none."""
  code = str(getattr(error, "code", ""))
  return int(code) if code.isdecimal() else 0


def _raised_in(error: BaseException, libraries: Collection[str]) -> bool:
  """Whether an error went through the code of some libraries."""
  trace = error.__traceback__
  while trace is not None:
    if set(libraries) & set(Path(trace.tb_frame.f_code.co_filename).parts):
      return True
    trace = trace.tb_next
  return False


def _buckets() -> list[str]:
  return sorted(f"gs://{name}" for name in NAMES)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and all the errors that caused it, the last one first."""
  while error is not None:
    yield error
    if isinstance(error, BaseExceptionGroup):
      for inner in error.exceptions:
        yield from _causes(inner)
    error = error.__cause__ or error.__context__

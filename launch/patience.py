"""How long a launcher goes on trying."""

import re

from shell import RefusalError, call, pause, say

# Names of what a run has saved: checkpoints, finished rounds, shards of pairs.
_SAVED = re.compile(
  r"\S+/checkpoints/\d+/|\S+/best/\d+_[^/\s]+/|\S+/final\b|\S+/\d+\.npz"
)


class Patience:
  """How many failures of a kind in a row a run may have.

  Failures of the training are in a row while nothing more is saved in between.

  Args:
    limit: the failure that is one too many.
    workdir: where the run saves, in a bucket.
    poll_seconds: the pause after the first one; it doubles.
  """

  def __init__(self, limit: int, workdir: str, poll_seconds: float):
    self._limit = limit
    self._listing = ["gcloud", "storage", "ls", f"{workdir}/**"]
    self._poll_seconds = poll_seconds
    self._counts: dict[str, int] = {}
    self._saved: set[str] | None = None

  def passed(self, kind: str) -> None:
    """Forgets the failures of a kind."""
    self._counts[kind] = 0

  def failed(self, kind: str, reason: str) -> int:
    """Counts a failure, says it and waits; how many there were in a row.

    Raises:
      RefusalError: at the limit.
    """
    if kind == "training" and self._has_progressed():
      self.passed(kind)
    self._counts[kind] = count = self._counts.get(kind, 0) + 1
    if count >= self._limit:
      raise RefusalError(
        f"{reason}; {count} failures in a row, see --max_failures"
      )
    say(f"{reason}; failure {count} in a row, trying again")
    pause(self._poll_seconds, count - 1)
    return count

  def _has_progressed(self) -> bool:
    listed = call(self._listing)
    if listed.status:
      return False  # of a bucket that does not answer nothing is known
    before, self._saved = self._saved, set(_SAVED.findall(listed.output))
    return self._saved != before

"""Judges the models of a run that still trains, each as soon as it is finished.

A student that still trains is judged by its newest checkpoint, again and again.
Nothing is written into the folder of a round, so no lock is needed. The
training may stop and start again meanwhile, on other machines too.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from etils import epath

from diffdistill.judging.contestants import unfinished_students
from diffdistill.run import from_config
from diffdistill.run.experiment import Experiment
from diffdistill.system import hosts
from diffdistill.system.files import in_bucket, read_bytes
from diffdistill.tools.speaking import say
from diffdistill.training.checkpoint import FINAL
from diffdistill.training.preemption import PreemptedError, Preemption

T = TypeVar("T")

# Seconds between two looks at a workdir on a disk, and at one in a bucket.
SECONDS_ON_DISK, SECONDS_IN_BUCKET = 5.0, 30.0
# A signal is noticed after this many seconds at most.
SECONDS_TO_NOTICE = 1.0


class Seen(NamedTuple):
  """The rounds that a training has finished, and its config.

  Args:
    config: a digest of the config; "" before the training has begun.
    finished: a digest of the result of each finished round, by name.
    so_far: the updates of the newest checkpoint of each unfinished student.
  """

  config: str
  finished: dict[str, str]
  so_far: dict[str, int]


def follow(
  workdir: epath.Path, judge: Callable[[], T], *, by_fid: bool = False
) -> T:
  """Judges a run each time that a model is new, until all rounds are finished.

  Args:
    workdir: the folder of the run, which need not exist yet.
    judge: judges all models that are there, and keeps the rows that it made.
    by_fid: whether the FID network judges, so that no classifier is needed.

  Returns:
    The result of the last call of `judge`.

  Raises:
    PreemptedError: after SIGTERM.
    ValueError: if the run can never be judged, or if `judge` raises it.
  """
  wait = SECONDS_IN_BUCKET if in_bucket(workdir) else SECONDS_ON_DISK
  if not _config(workdir):
    say(f"waits for a training to begin in {workdir}")
  # Without a run there is no mesh to vote on. A signal ends the process here.
  while not _config(workdir):
    time.sleep(wait)
  with Preemption() as preemption:
    result, judged, run = None, None, None
    config = missing = ""
    while True:
      if run is None or config != _config(workdir):
        config = _config(workdir)
        run = from_config.reopen(workdir)
        _check(run, workdir, by_fid)
      seen = _look(workdir, run, config)
      if seen != judged and not _lacking(run, seen, by_fid):
        try:
          result = judge()
        except ValueError:
          # While a model was judged, a redo may have moved its round, or the
          # training may have removed its checkpoint.
          if _look(workdir, run, _config(workdir)) == seen:
            raise
        else:
          judged = seen
        continue
      left = [name for name in _trained(run) if name not in seen.finished]
      if not left and result is not None:
        return result
      if left and left[0] != missing:
        missing = left[0]
        say(f"waits until {missing} is finished")
      _wait(preemption, run, wait, missing)


def _wait(
  preemption: Preemption, run: Experiment, seconds: float, missing: str
) -> None:
  """Waits, and ends if a signal arrives."""
  until = time.monotonic() + seconds
  while True:
    if preemption.agreed(run.mesh, lag=0):
      raise PreemptedError(
        f"asked to leave while {missing or 'the run'} is not finished; the rows"
        " that are done are kept, and the same command goes on from there"
      )
    # The first process decides for all, because the clocks differ.
    if hosts.on_first(lambda: time.monotonic() >= until):
      return
    time.sleep(SECONDS_TO_NOTICE)


def _check(run: Experiment, workdir: epath.Path, by_fid: bool) -> None:
  """Refuses a run that can never be judged."""
  if run.judging_stage is None and not by_fid and not run.evaluation.inception:
    raise ValueError(
      f"the run in {workdir} trains no classifier that could judge; pass"
      " --inception=FILE with the weights of FID's network"
    )


def _lacking(run: Experiment, seen: Seen, by_fid: bool) -> bool:
  """Whether the judge or the teacher is not finished yet."""
  needed = [next(iter(run.models), "")]
  judge = run.judging_stage
  if judge is not None and not by_fid and not run.evaluation.inception:
    needed.append(judge.name)
  return any(name not in seen.finished for name in needed)


def _trained(run: Experiment) -> list[str]:
  """The rounds of the run, without the old ones that were trained again."""
  old = {round_.name for _, round_ in run.old}
  return [name for name in run.rounds if name not in old]


def _config(workdir: epath.Path) -> str:
  return hosts.on_first(lambda: _digest(workdir / "config.json"))


def _look(workdir: epath.Path, run: Experiment, config: str) -> Seen:
  """Looks at what the training has written, on the first process."""

  def look() -> dict[str, dict[str, Any]]:
    found = {name: _digest(workdir / name / FINAL) for name in run.rounds}
    finished = {name: digest for name, digest in found.items() if digest}
    steps = unfinished_students(run, workdir, finished)
    return {"finished": finished, "so_far": steps}

  return Seen(config, **hosts.on_first(look))


def _digest(path: epath.Path) -> str:
  """A digest of a file; "" if there is none."""
  try:
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]
  except (FileNotFoundError, NotADirectoryError):
    return ""

"""The command that judges a run's teacher and students."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.data.facts import Facts, describe
from diffdistill.data.record import Recorded
from diffdistill.evaluation.settings import Settings
from diffdistill.judging import evaluate as evaluating
from diffdistill.judging.exported import open_exported
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.system import hosts, places
from diffdistill.tools import follow as following
from diffdistill.tools.speaking import answer, say
from diffdistill.training.preemption import PreemptedError, Preemption

# This environment variable names the file of the FID network's weights.
VARIABLE = "DIFFDISTILL_INCEPTION"


def evaluate(
  workdir: epath.Path,
  num_images: int | None,
  num_steps: tuple[int, ...] | None,
  inception: str | epath.Path | None = None,
  reference: str | epath.Path | None = None,
  follow: bool = False,
) -> None:
  """Judges the teacher and every finished student, and prints the table.

  The other arguments and the errors are the same as in `judge`.

  Args:
    follow: whether to go on until the training of the run has finished, see
      follow.py.
  """
  judge_now = functools.partial(
    judge,
    workdir,
    num_images=num_images,
    num_steps=num_steps,
    inception=inception,
    reference=reference,
    so_far=follow,
  )
  if follow:
    by_fid = bool(inception or os.environ.get(VARIABLE))
    evaluation = following.follow(workdir, judge_now, by_fid=by_fid)
  else:
    evaluation = judge_now()
  answer(repr(evaluation))
  if evaluation.warning:
    say(f"warning: {evaluation.warning}")


def judge(
  workdir: epath.Path,
  *,
  num_images: int | None = None,
  num_steps: tuple[int, ...] | None = None,
  seed: int | None = None,
  batch_size: int | None = None,
  inception: str | epath.Path | None = None,
  reference: str | epath.Path | None = None,
  exported: Sequence[epath.Path] = (),
  so_far: bool = False,
) -> evaluating.Evaluation:
  """Judges the teacher and every finished student; writes the evaluation.

  The folder `evaluated` in the workdir keeps each finished row and every
  evaluation, so the next call continues after the last finished row. The
  largest evaluation is also in evaluation.json, evaluation.png and
  samples/compared.png. An argument that is None has the config's value.

  Args:
    workdir: the folder of the run.
    num_images: the number of images in a row.
    num_steps: the numbers of steps of the teacher's sampler. A student is
      judged if its own number of steps is one of these.
    seed: the seed of the noise.
    batch_size: the number of images in a batch.
    inception: the file of the FID network's weights. If neither this argument
      nor the config names the file, DIFFDISTILL_INCEPTION may name it.
    reference: an .npz of the FID network's statistics of the data.
    exported: folders of exported students, which are judged too.
    so_far: whether to judge students that still train too, by their newest
      checkpoints.

  Raises:
    PreemptedError: if SIGTERM arrives.
    ValueError: if the run has no classifier or no teacher to judge by, or if a
      file or the number of images does not fit FID.
  """
  run = from_config.reopen(workdir)
  environment.check(workdir)
  given = {
    "num_images": num_images,
    "num_steps": num_steps,
    "seed": seed,
    "batch_size": batch_size,
    "inception": inception and str(inception),
    "reference": reference and str(reference),
  }
  settings = _settings(run.evaluation, given)
  run = dataclasses.replace(run, evaluation=settings)
  say(_facts(run).summary(run.devices))
  size = min(settings.batch_size, settings.num_images)
  beside = [open_exported(path, size, settings.num_steps) for path in exported]
  with Preemption() as preemption:
    between = functools.partial(_leave_if_asked, preemption, run)
    evaluation = evaluating.evaluate(run, workdir, say, between, beside, so_far)
  hosts.on_first(lambda: evaluating.write_evaluation(workdir, evaluation, say))
  return evaluation


def _leave_if_asked(preemption: Preemption, run: Experiment) -> None:
  if preemption.agreed(run.mesh):
    raise PreemptedError(
      "asked to leave the evaluation; the rows that are done are kept, and the"
      " same command goes on from there"
    )


def _settings(usual: Settings, given: Mapping[str, Any]) -> Settings:
  """The config's settings, replaced by the given ones that are not None."""
  known = {name: value for name, value in given.items() if value is not None}
  inception = os.environ.get(VARIABLE)
  if inception and not (usual.inception or "inception" in known):
    known["inception"] = str(places.place(VARIABLE, inception))
  return dataclasses.replace(usual, **known)


def _facts(run: Experiment) -> Facts:
  """The facts about a run's data: the recorded ones, or else read from it."""
  if isinstance(run.source, Recorded):
    return run.source.facts
  return describe(run.source, counted=run.denoiser.conditional)

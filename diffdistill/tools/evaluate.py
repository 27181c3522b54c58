"""The command that judges a run's teacher and students."""

import dataclasses
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
from diffdistill.tools.speaking import answer, say
from diffdistill.training.preemption import PreemptedError, Preemption

# Names the file of the FID network's weights.
VARIABLE = "DIFFDISTILL_INCEPTION"


def evaluate(
  workdir: epath.Path,
  num_images: int | None,
  num_steps: tuple[int, ...] | None,
  inception: str | epath.Path | None = None,
  reference: str | epath.Path | None = None,
) -> None:
  """Judges the teacher and every finished student, and prints the table.

  The arguments and the refusals are those of `judge`.
  """
  evaluation = judge(
    workdir,
    num_images=num_images,
    num_steps=num_steps,
    inception=inception,
    reference=reference,
  )
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
) -> evaluating.Evaluation:
  """Judges the teacher and every finished student; writes the evaluation.

  A row that is done is kept, so the next call goes on where this one ended.

  Args:
    workdir: of the run; the evaluation and each row as it is done go under
      evaluated, and the largest evaluation is evaluation.json, evaluation.png
      and samples/compared.png too.
    num_images: judged a row; the config's by default.
    num_steps: of the teacher's sampler, and which students to judge; the
      config's by default.
    seed: of the noise; the config's by default.
    batch_size: images made at a time; the config's by default.
    inception: the file of the FID network's weights; by default the config's,
      or that of DIFFDISTILL_INCEPTION.
    reference: an .npz of the FID network's statistics of the data; the
      config's by default.
    exported: folders of exported students, to be judged too.

  Raises:
    PreemptedError: after SIGTERM.
    ValueError: where the run has no classifier or no teacher to judge by, or
      where a file or the number of images is not what FID needs.
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

    def between() -> None:
      if preemption.agreed(run.mesh):
        raise PreemptedError(
          "asked to leave the evaluation; the rows that are done are kept, and"
          " the same command goes on from there"
        )

    evaluation = evaluating.evaluate(run, workdir, say, between, beside)
  hosts.on_first(lambda: evaluating.write_evaluation(workdir, evaluation, say))
  return evaluation


def _settings(usual: Settings, given: Mapping[str, Any]) -> Settings:
  """The config's settings, with those that are given in their place."""
  known = {name: value for name, value in given.items() if value is not None}
  inception = os.environ.get(VARIABLE)
  if inception and not (usual.inception or "inception" in known):
    known["inception"] = str(places.place(VARIABLE, inception))
  return dataclasses.replace(usual, **known)


def _facts(run: Experiment) -> Facts:
  """The facts about a run's data, as recorded; without a record, as it is."""
  if isinstance(run.source, Recorded):
    return run.source.facts
  return describe(run.source, counted=run.denoiser.conditional)

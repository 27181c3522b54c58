"""The command that trains a recipe in its workdir."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.arrays import Params
from diffdistill.data.facts import Facts
from diffdistill.data.record import Recorded, admit, keep
from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.evaluation import grids
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.labelled import Labels, labelled_sheet
from diffdistill.evaluation.titles import class_titles, sheet_title
from diffdistill.judging.before_training import check_inception, check_judge
from diffdistill.judging.scorer import Scorer
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.run.kept_names import check_workdir
from diffdistill.run.teacher_pairs import check_disk, pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.run.workdir import claim
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts, lock, started
from diffdistill.tools.endings import already, beginning, ending
from diffdistill.tools.redo import (
  check_no_redo_is_open,
  plan,
  rename_old_rounds,
)
from diffdistill.tools.speaking import say
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import judging_stage
from diffdistill.training.effects import notes
from diffdistill.training.pairs_stage import pairs_stages
from diffdistill.training.preemption import Preemption
from diffdistill.training.shared import Observe
from diffdistill.training.stage import OUTSIDE, Round
from diffdistill.training.trainer import Trainer
from diffdistill.training.training_stage import Training
from diffdistill.training.watchdog import Watchdog
from diffdistill.training.writers import check_installed, open_writer

SHEET_IMAGES = 64


def train(config: Any, workdir: epath.Path, redo: str | None = None) -> None:
  """Trains every round of the recipe that is not finished yet.

  Args:
    config: the recipe, as plain values.
    workdir: the folder of the run; it is held until the training ends.
    redo: a round to train again, with all later rounds that begin from it; the
      old ones are kept, see redo.py.

  Raises:
    PreemptedError: after SIGTERM, once everything is saved.
    ValueError: if another training is running in the workdir, or if the round
      cannot be trained again.
  """
  with Preemption() as preemption, contextlib.ExitStack() as holding:
    run = from_config.build(config, workdir=workdir)
    data = _admit_data(run, workdir)
    run = dataclasses.replace(run, source=data)
    trainer = _trainer(run, workdir, preemption)
    again = plan(run, workdir, redo) if redo else None
    if again is None:
      check_no_redo_is_open(workdir)
    finished = {
      name: checkpoint.has_final(workdir / name)
      and not (again and name in again.old)
      for name in run.rounds
    }
    _check(run, workdir, finished)
    # Take the lock after all checks: it creates the workdir, and a refused
    # training must not leave a new workdir behind.
    holding.enter_context(lock.held(workdir, say))
    if again:
      rename_old_rounds(again, workdir)
    _open_workdir(run, workdir, data.facts, [again.stage] if again else [])
    if any(finished.values()):
      say(already(finished))
    for line in beginning(run, workdir, finished):
      say(line)
    with trainer.watchdog:
      trainer.run()
  judged = bool(judging_stage(run.stages) or run.evaluation.inception)
  say(ending(workdir, list(finished), judged=judged))


def _admit_data(run: Experiment, workdir: epath.Path) -> Recorded:
  """Opens the run's data; refuses data that an earlier start did not have."""
  data = admit(
    run.source,
    workdir,
    begun=hosts.on_first(
      lambda: any((workdir / stage.name).exists() for stage in run.stages)
    ),
    counted=run.denoiser.conditional,
  )
  say(data.facts.summary(run.devices))
  if unused := environment.unused_gpus():
    say(unused)
  for line in run.chosen:
    say(line)
  return data


def _trainer(
  run: Experiment, workdir: epath.Path, preemption: Preemption
) -> Trainer:
  watchdog = Watchdog(run.cadence.stall_seconds)
  score = Scorer(run, workdir, watchdog.alive, say)
  return Trainer(
    stages=run.stages,
    workdir=workdir,
    seed=run.seed,
    batches=run.batches,
    pairs=functools.partial(pair_store, run, workdir),
    outside=functools.partial(load_outside, run),
    layout=run.layout,
    cadence=run.cadence,
    observe=_sheets(run, workdir),
    distance=score,
    begins=score.begins,
    ends=score.ends,
    preemption=preemption,
    watchdog=watchdog,
    writer=functools.partial(open_writer, run.writer, workdir, run.config, say),
    began=started.began(),
  )


def _sheets(run: Experiment, workdir: epath.Path) -> Observe:
  """A function that draws a round's samples into the workdir."""

  @functools.cache
  def generator(
    sampler: Sampler, guidance: Guidance | Told | None
  ) -> Generator:
    return run.generator(sampler, SHEET_IMAGES, guidance=guidance)

  def observe(
    stage: Training, round_: Round, params: Params, step: int
  ) -> None:
    sampler = stage.objective.sampler
    if sampler is None:
      return
    drawing = generator(sampler, run.usual_guidance(round_))
    steps = run.usual_steps(round_)
    images = drawing.batches(params, run.evaluation.seed, SHEET_IMAGES, steps)
    path = workdir / "samples" / f"{round_.name.replace('/', '_')}.png"
    labels = drawing.labels_of(0, SHEET_IMAGES)
    texts = Labels(
      title=sheet_title(round_.name, steps, f"update {step}"),
      images=class_titles(labels, run.source.class_names),
    )
    sheet = labelled_sheet(next(images), texts)
    hosts.on_first(lambda: grids.save_png(sheet, path))

  return observe


def _check(
  run: Experiment, workdir: epath.Path, finished: Mapping[str, bool]
) -> None:
  """Checks, before the first update, all inputs that later stages need."""
  # Only the first process writes, so only its host needs the packages.
  hosts.on_first(lambda: check_installed(run.writer))
  if run.evaluation.inception:
    check_inception(run)
  to_do = {
    stage.name for name, (stage, _) in run.rounds.items() if not finished[name]
  }
  if to_do:
    check_workdir(workdir)
  check_judge(run, to_do, say)
  for stage in run.stages:
    for name, source in stage.frozen.items():
      if source.startswith(OUTSIDE) and stage.name in to_do:
        load_outside(run, stage, name, source)
    if stage.source and stage.name in to_do:
      load_outside(run, stage, stage.product, stage.source)
      say(f"{stage.name}: the run's model is that of {stage.source}")
  for pairs in pairs_stages(run.stages).values():
    check_disk(run, pairs)


def _open_workdir(
  run: Experiment, workdir: epath.Path, facts: Facts, redone: Sequence[str]
) -> None:
  """Records config, data and versions; prints which fields have no effect."""
  claim(workdir, run.config, redone)
  keep(workdir, facts)
  environment.record(workdir, say)
  for note in notes(run.stages, run.cadence):
    say(note)

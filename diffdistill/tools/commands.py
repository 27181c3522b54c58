"""What each command does, as functions of plain values."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.data import SOURCES
from diffdistill.data.facts import Facts, describe
from diffdistill.data.packed import SPLIT
from diffdistill.data.packed import pack as pack_source
from diffdistill.data.record import Recorded, admit, keep
from diffdistill.diffusion.guidance import Guidance
from diffdistill.evaluation import grids
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.interpolated import interpolated
from diffdistill.images import from_uint8, to_uint8
from diffdistill.interop import model_folder
from diffdistill.interop.formats import read_model
from diffdistill.judging import evaluate as evaluating
from diffdistill.judging.contestants import finished_models
from diffdistill.judging.held_out import check_judge
from diffdistill.judging.judge import check_inception
from diffdistill.judging.selection import Scorer
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.planning import plan as planning
from diffdistill.reporting.page import write_report
from diffdistill.run import environment, from_config
from diffdistill.run.experiment import Experiment
from diffdistill.run.kept_names import check_out, check_workdir
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.run.teacher_pairs import check_disk, pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.run.workdir import claim, stored_config
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.one_step import OneStep
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts, lock, places
from diffdistill.system.files import (
  in_bucket,
  json_of,
  whole_folder,
  write_atomically,
)
from diffdistill.tools import export as exporting
from diffdistill.tools.benchmark import benchmark as measure
from diffdistill.tools.carry import carry as carry_run
from diffdistill.tools.endings import already, ending
from diffdistill.training import checkpoint
from diffdistill.training.effects import check_images, notes
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.stage import OUTSIDE, Pairs, Round, Stage
from diffdistill.training.trainer import Trainer
from diffdistill.training.watchdog import Watchdog

SHEET_IMAGES = 64
TURNS = 5


def train(config: Any, workdir: epath.Path) -> None:
  """Trains every round of the recipe that is not finished yet.

  Raises:
    PreemptedError: after SIGTERM, once everything is saved.
    ValueError: where another training is at work in the workdir.
  """
  with Preemption() as preemption, contextlib.ExitStack() as holding:
    trainer, rounds = _trainer(config, workdir, preemption, holding)
    if any(rounds.values()):
      _say(already(rounds))
    with trainer.watchdog:
      trainer.run()
  _say(ending(workdir, list(rounds)))


def _trainer(
  config: Any,
  workdir: epath.Path,
  preemption: Preemption,
  holding: contextlib.ExitStack,
) -> tuple[Trainer, dict[str, bool]]:
  """The trainer of a recipe in its workdir, and which rounds are finished.

  The workdir is held from then on, to the end of `holding`.
  """
  run = from_config.build(config, workdir=workdir)
  data = admit(
    run.source,
    workdir,
    begun=hosts.on_first(
      lambda: any((workdir / stage.name).exists() for stage in run.stages)
    ),
    counted=run.denoiser.conditional,
  )
  _say(data.facts.summary(run.devices))
  run = dataclasses.replace(run, source=data)
  if run.evaluation.inception:
    check_inception(run)

  watchdog = Watchdog(run.cadence.stall_seconds)

  @functools.cache
  def generator(sampler: Sampler, guidance: Guidance | None) -> Generator:
    return run.generator(sampler, SHEET_IMAGES, guidance=guidance)

  def observe(stage: Stage, round_: Round, params: Params, step: int) -> None:
    sampler = stage.objective.sampler
    if sampler is None:
      return
    images = generator(sampler, run.usual_guidance(round_)).batches(
      params, run.evaluation.seed, SHEET_IMAGES, run.usual_steps(round_)
    )
    path = workdir / "samples" / f"{round_.name.replace('/', '_')}.png"
    sheet = grids.sheet(next(images))
    hosts.on_first(lambda: grids.save_png(sheet, path))

  score = Scorer(run, workdir, watchdog.alive, _say)
  trainer = Trainer(
    stages=run.stages,
    workdir=workdir,
    seed=run.seed,
    batches=run.batches,
    pairs=functools.partial(pair_store, run, workdir),
    outside=functools.partial(load_outside, run),
    layout=run.layout,
    cadence=run.cadence,
    observe=observe,
    distance=score,
    begins=score.begins,
    preemption=preemption,
    watchdog=watchdog,
  )
  # Met before anything is trained, not when their stage begins.
  rounds = {name: checkpoint.has_final(workdir / name) for name in run.rounds}
  to_do = {
    stage.name for name, (stage, _) in run.rounds.items() if not rounds[name]
  }
  if to_do:
    check_workdir(workdir)
  check_judge(run, to_do, _say)
  for stage in run.stages:
    for name, source in stage.frozen.items():
      if source.startswith(OUTSIDE) and stage.name in to_do:
        load_outside(run, stage, name, source)
    if isinstance(stage, Pairs):
      check_disk(run, stage)
    elif stage.source and stage.name in to_do:
      load_outside(run, stage, stage.objective.trains[0], stage.source)
      _say(f"{stage.name}: the run's model is that of {stage.source}")
  # Last, so that no refusal leaves a workdir behind.
  holding.enter_context(lock.held(workdir, _say))
  claim(workdir, run.config)
  keep(workdir, data.facts)
  environment.record(workdir, _say)
  for note in notes(run.stages, run.cadence):
    _say(note)
  return trainer, rounds


def sample(
  workdir: epath.Path,
  round_name: str | None,
  num_images: int,
  num_steps: int | None,
  seed: int,
  label: int | None,
  guidance: float | None,
  interpolate: int | None,
  out: epath.Path,
) -> None:
  """Images of one model: a .png sheet, or an .npz of bytes under "images".

  Args:
    workdir: of the run.
    round_name: whose; the last finished one by default.
    num_images: how many; rows of them, with `interpolate`.
    num_steps: of the sampler; by default those that the student was made for.
    seed: of the noise.
    label: the class of all images; by default they take turns.
    guidance: the weight; by default the config's for a teacher, 0 for others.
    interpolate: images a row, from one noise to another (Luhman & Luhman 2021
      show 11); by default every image has noise of its own.
    out: where to.

  Raises:
    ValueError: for a round or an ending that is not there.
  """
  if out.suffix not in (".png", ".npz"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .png or .npz"
    )
  if num_images < 1:
    raise ValueError(f"num_images is {num_images}; pass 1 or more")
  if interpolate is not None and interpolate < 2:
    raise ValueError(f"interpolate is {interpolate}; pass 2 images or more")
  run = from_config.reopen(workdir)
  environment.check(workdir)
  replaced = check_out(out, [workdir], run.config["stages"])
  stage, round_, steps = _model(run, workdir, round_name, num_steps)
  sampler = stage.objective.sampler
  assert sampler is not None  # it makes images
  check_images(num_images * (interpolate or 1), run.source.image_shape)
  usual = run.usual_guidance(round_)
  if guidance is not None:
    usual = dataclasses.replace(run.guidance, weight=guidance)
  make = functools.partial(run.generator, sampler, label=label, guidance=usual)
  params = run.product(workdir, round_.name)
  if interpolate is not None:
    rows = interpolated(make(1), params, seed, num_images, interpolate, steps)
    images = to_uint8(rows)
  else:
    generator = make(min(run.evaluation.batch_size, num_images))
    batches = generator.batches(params, seed, num_images, steps)
    images = np.concatenate([to_uint8(batch) for batch in batches])
  if out.suffix == ".npz":
    data = io.BytesIO()
    np.savez_compressed(data, images=images)
    hosts.on_first(lambda: write_atomically(out, data.getvalue()))
  else:
    sheet = grids.sheet(from_uint8(images), interpolate)
    hosts.on_first(lambda: grids.save_png(sheet, out))
  _print(
    f"{len(images)} images of {round_.name} in {steps} steps: {out}{replaced}"
  )


def _model(
  run: Experiment,
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
) -> tuple[Stage, Round, int]:
  """A finished model and its sampler's steps; the last one by default."""
  models = finished_models(run, workdir, _say)
  name = round_name or list(models)[-1]
  if name not in models:
    raise ValueError(
      f"round is {name!r}, which is not finished or does not exist; pass one of"
      f" {', '.join(models)}"
    )
  stage, round_ = models[name]
  if isinstance(stage.objective.sampler, OneStep) and num_steps not in (
    None,
    1,
  ):
    raise ValueError(
      f"num_steps is {num_steps}, but {name} makes its images in one; leave it"
      " out"
    )
  steps = num_steps or run.usual_steps(round_)
  if round_.num_steps not in (0, steps):
    _say(
      f"{name} was made for {round_.num_steps} steps and is sampled in {steps};"
      f" leave num_steps out for {round_.num_steps}"
    )
  return stage, round_, steps


def import_model(
  source: epath.Path, settings: epath.Path | None, out: epath.Path
) -> None:
  """Writes another framework's model as a folder that a recipe can take.

  Args:
    source: a file or a folder, see interop/formats.py.
    settings: a JSON file of what some formats do not say.
    out: the folder, for stages.teacher.source=imported:OUT.

  Raises:
    ValueError: for a model that is damaged or cannot be represented.
  """
  exporting.check_empty(out)
  model = read_model(source, settings)
  # What its fields mean is known where recipes are.
  sampler_of(model, denoiser_of(model))
  with whole_folder(out) as new:
    model_folder.save(model, new)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  _print(
    f"{model.origin}: {model.network['kind']} of {count:,} parameters,"
    f" {model.schedule['kind']}, predicts {model.output}: {out}"
  )


def export(
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
  kind: str,
  out: epath.Path,
) -> None:
  """Writes a finished model in another format, with its card.

  Args:
    workdir: of the run.
    round_name: whose; the last finished one by default.
    num_steps: of the sampler; by default those that the student was made for.
    kind: diffusers, safetensors or stablehlo.
    out: a folder.

  Raises:
    ValueError: for a model that the format cannot represent.
  """
  if kind not in exporting.FORMATS:
    raise ValueError(
      f"format is {kind!r}; pass one of {', '.join(exporting.FORMATS)}"
    )
  exporting.check_empty(out)
  run = from_config.reopen(workdir)
  environment.check(workdir)
  check_out(out, [workdir], run.config["stages"], folder=True)
  stage, round_, steps = _model(run, workdir, round_name, num_steps)
  with whole_folder(out) as new:
    exporting.export(run, workdir, round_, stage, steps, kind, new)
  _print(f"{round_.name} in {steps} steps as {kind}: {out}")


def evaluate(
  workdir: epath.Path,
  num_images: int | None,
  num_steps: tuple[int, ...] | None,
  inception: str | None = None,
  reference: str | None = None,
) -> None:
  """Judges the teacher and every finished student; writes and prints it.

  A row that is done is kept, so the same command goes on where it was ended.

  Args:
    workdir: of the run; the evaluation and each row as it is done go under
      evaluated, and the largest evaluation is evaluation.json, evaluation.png
      and samples/compared.png too.
    num_images: per row; the config's by default.
    num_steps: of the teacher's sampler, and which students to judge; the
      config's by default.
    inception: the file of the FID network's weights; by default the config's,
      or that of DIFFDISTILL_INCEPTION.
    reference: an .npz of its statistics; the config's by default.

  Raises:
    PreemptedError: after SIGTERM.
    ValueError: where the run has no classifier or no teacher to judge by, or
      where a file or the number of images is not what FID needs.
  """
  run = from_config.reopen(workdir)
  environment.check(workdir)
  if inception is None and not run.evaluation.inception:
    variable = "DIFFDISTILL_INCEPTION"
    inception = os.environ.get(variable)
    inception = inception and str(places.place(variable, inception))
  given: dict[str, Any] = {
    "num_images": num_images,
    "num_steps": num_steps,
    "inception": inception,
    "reference": reference,
  }
  given = {name: value for name, value in given.items() if value is not None}
  settings = dataclasses.replace(run.evaluation, **given)
  run = dataclasses.replace(run, evaluation=settings)
  _say(_facts(run).summary(run.devices))
  with Preemption() as preemption:

    def between() -> None:
      if preemption.agreed(run.mesh):
        raise PreemptedError(
          "asked to leave the evaluation; the rows that are done are kept, and"
          " the same command goes on from there"
        )

    evaluation = evaluating.evaluate(run, workdir, _say, between)
  hosts.on_first(lambda: evaluating.write_evaluation(workdir, evaluation, _say))
  if evaluation.warning:
    _print(evaluation.warning)
  _print(grids.table(evaluation.rows))
  for name, value in evaluation.summary.items():
    _print(
      f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
    )
  if evaluation.warning:
    _say(f"warning: {evaluation.warning}")


def _facts(run: Experiment) -> Facts:
  """Of the data of a run, as recorded; of a run without a record, as it is."""
  if isinstance(run.source, Recorded):
    return run.source.facts
  return describe(run.source, counted=run.denoiser.conditional)


def carry(workdir: epath.Path, out: epath.Path) -> None:
  """Writes a workdir with only what the rest of its run asks for.

  Args:
    workdir: of the run.
    out: a folder that is not there yet.

  Raises:
    ValueError: where `out` is there, one of both is a bucket, or a training is
      at work in the workdir.
  """
  for place in (workdir, out):
    if in_bucket(place):
      raise ValueError(
        f"{place} is in a bucket, which other machines reach as it is; pass"
        " folders of a disk"
      )
  run = from_config.reopen(workdir)
  if out.exists():
    raise ValueError(f"out is {out}, which is there already; pass a new folder")
  carry_run(run, workdir, out, _say)
  files = (path for path in Path(out).rglob("*") if path.is_file())
  size = sum(path.stat().st_size for path in files)
  _print(f"{size / 1e6:.1f} MB to go on with elsewhere: {out}")


def report(workdirs: Sequence[epath.Path], out: epath.Path) -> None:
  """Writes one page of a run, or of several side by side; or its numbers.

  Args:
    workdirs: of the runs, finished or not.
    out: an .html file, or a .json file of the numbers alone.

  Raises:
    ValueError: where one holds no run, or for another ending.
  """
  replaced = [
    check_out(out, [workdir], stored_config(workdir)["stages"])
    for workdir in workdirs
  ]
  write_report(workdirs, out, _say)
  _print(f"{', '.join(map(str, workdirs))}: {out}{replaced[0]}")


def pack(config: Any, out: str) -> None:
  """Writes a config's images as files of bytes, see data/packed.py.

  Args:
    config: whose data source is read, resized as it says.
    out: an .npz; "{split}" in it stands for train and test.

  Raises:
    ValueError: for another ending, or without {split} where there are two.
  """
  for split in ("train", "test"):
    check_out(epath.Path(out.replace(SPLIT, split)))
  run = from_config.build(config)
  facts = describe(run.source, counted=False)
  _say(facts.summary(run.devices))
  for line in pack_source(run.source, out, _say):
    _print(line)


def plan(config: Any, topology: str, as_json: bool) -> None:
  """Prints what a recipe costs on a topology, as a table or as JSON.

  Raises:
    ValueError: where a program does not fit, after printing.
  """
  # Where other programs of a user keep what they can make again.
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  made = planning.make_plan(
    config, topology, Path(caches) / "diffdistill", _say
  )
  if as_json:
    print(json.dumps(planning.as_json(made), indent=2))
  else:
    print(planning.table(made))
  refusal = planning.refusal(made)
  if refusal is not None:
    raise ValueError(refusal)


def benchmark(
  config: Any,
  stage: str | None,
  num_updates: int,
  num_steps: tuple[int, ...],
  profile: Path | None,
) -> None:
  """Prints, as JSON, how fast a recipe trains and samples, see benchmark.py."""
  run = from_config.build(config)
  run.source.check()
  result = measure(run, stage, num_updates, TURNS, num_steps, profile)
  # A report reads it, where it is put into a workdir.
  print(json_of(result))


def list_all() -> None:
  """Prints objectives, networks, data sources, samplers, configs, recipes."""
  for title, table in (
    ("objectives", OBJECTIVES),
    ("networks", NETWORKS),
    ("classifiers", CLASSIFIERS),
    ("samplers", SAMPLERS),
    ("data sources", SOURCES),
  ):
    print(f"{title}:")
    for name, cls in table.items():
      print(f"  {name:<26} {(cls.__doc__ or '').strip().splitlines()[0]}")
  folder = Path(__file__).parents[2] / "configs"
  print("configs and recipes:")
  for path in sorted(folder.glob("*.py")):
    recipes = getattr(
      importlib.import_module(f"configs.{path.stem}"), "RECIPES", {}
    )
    for name, description in recipes.items():
      print(f"  configs/{path.name}:{name:<26} {description}")


def _say(message: str) -> None:
  if hosts.is_first():
    print(message, file=sys.stderr, flush=True)


def _print(message: str) -> None:
  if hosts.is_first():
    print(message)

"""What each command does, as functions of plain values."""

import dataclasses
import functools
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill import experiment
from diffdistill.arrays import Params
from diffdistill.benchmark import benchmark as measure
from diffdistill.data import SOURCES
from diffdistill.data.pipeline import once
from diffdistill.evaluation import grids
from diffdistill.evaluation.comparison import (
  Contestant,
  Settings,
  compare,
  distance_of_halves,
  write_comparison,
)
from diffdistill.evaluation.evaluator import Generator
from diffdistill.evaluation.features import (
  FeatureFn,
  classifier_features,
  reference_statistics,
)
from diffdistill.evaluation.quantise import from_uint8, to_uint8
from diffdistill.experiment import Experiment
from diffdistill.files import write_atomically
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import Round, Stage
from diffdistill.training.trainer import Trainer
from diffdistill.workdir import claim

SHEET_IMAGES = 64
TURNS = 5


def train(config: Any, workdir: epath.Path) -> None:
  """Trains every round of the recipe that is not finished yet."""
  run = experiment.build(config)
  run.source.check()

  @functools.cache
  def generator(sampler: Sampler) -> Generator:
    return run.generator(sampler, SHEET_IMAGES)

  def observe(stage: Stage, round_: Round, params: Params, step: int) -> None:
    sampler = stage.objective.sampler
    if sampler is None:
      return
    num_steps = round_.num_steps or max(run.evaluation.num_steps)
    images = generator(sampler).batches(
      params, run.evaluation.seed, SHEET_IMAGES, num_steps
    )
    path = workdir / "samples" / f"{round_.name.replace('/', '_')}.png"
    grids.save_png(grids.sheet(next(images)), path)

  trainer = Trainer(
    stages=run.stages,
    workdir=workdir,
    seed=run.seed,
    batches=run.batches,
    mesh=run.mesh,
    cadence=run.cadence,
    observe=observe,
  )
  # Last, so that no refusal leaves a workdir behind.
  claim(workdir, run.config)
  trainer.run()


def sample(
  workdir: epath.Path,
  round_name: str | None,
  num_images: int,
  num_steps: int | None,
  seed: int,
  label: int | None,
  out: epath.Path,
) -> None:
  """Images of one model: a .png sheet, or an .npz of bytes under "images".

  Args:
    workdir: of the run.
    round_name: whose; the last finished one by default.
    num_images: how many.
    num_steps: of the sampler; by default those that the student was made for.
    seed: of the noise.
    label: the class of all images; by default they take turns.
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
  run = experiment.reopen(workdir)
  models = _finished_models(run, workdir)
  name = round_name or list(models)[-1]
  if name not in models:
    raise ValueError(
      f"round is {name!r}, which is not finished or does not exist; pass one of"
      f" {', '.join(models)}"
    )
  sampler, round_ = models[name]
  steps = num_steps or round_.num_steps or max(run.evaluation.num_steps)
  batch_size = min(run.evaluation.batch_size, num_images)
  generator = run.generator(sampler, batch_size, label)
  batches = generator.batches(
    run.product(workdir, name), seed, num_images, steps
  )
  images = np.concatenate([to_uint8(batch) for batch in batches])
  if out.suffix == ".npz":
    data = io.BytesIO()
    np.savez_compressed(data, images=images)
    write_atomically(out, data.getvalue())
  else:
    grids.save_png(grids.sheet(from_uint8(images)), out)
  print(f"{num_images} images of {name} in {steps} steps: {out}")


def evaluate(
  workdir: epath.Path, num_images: int | None, num_steps: tuple[int, ...] | None
) -> None:
  """Judges the teacher and every finished student; writes and prints it.

  Args:
    workdir: of the run; evaluation.json, evaluation.png and
      samples/compared.png go there.
    num_images: per row; the config's by default.
    num_steps: of the teacher's sampler, and which students to judge; the
      config's by default.

  Raises:
    ValueError: where the run has no classifier or no teacher to judge by.
  """
  run = experiment.reopen(workdir)
  settings = run.evaluation
  if num_images is not None:
    settings = dataclasses.replace(settings, num_images=num_images)
  if num_steps is not None:
    settings = dataclasses.replace(settings, num_steps=num_steps)
  judges = [s for s in run.stages if s.objective.trains[0] == "classifier"]
  if not judges or run.classifier is None:
    raise ValueError(
      f"the run in {workdir} has no classifier stage, whose features judge"
      " images; add one to config.run"
    )
  metric = f"FD-{judges[0].name}"
  contestants = _contestants(run, workdir, settings)
  teacher = contestants[0]
  params = run.product(workdir, judges[0].name)
  batch_size = teacher.generator.batch_size
  features = classifier_features(
    run.classifier, params, run.mesh, batch_size=batch_size
  )
  accuracy = _accuracy(run, features, batch_size)
  reference = reference_statistics(
    (batch["image"] for batch in once(run.source, batch_size)), features
  )
  rows, images = compare(
    teacher, contestants[1:], features, reference, metric, settings, _say
  )
  summary = {
    "metric": metric,
    "reference": f"{len(run.source)} training images",
    "num_images": settings.num_images,
    "seed": settings.seed,
    "rounding": "to the nearest byte",
    "classifier_test_accuracy": accuracy,
    f"{metric} of two samples of {len(reference.pooled) // 2} real images": (
      distance_of_halves(reference)
    ),
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
  }
  write_comparison(workdir, summary, rows, images, metric)
  print(grids.table(rows))
  for name, value in summary.items():
    print(
      f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
    )


def benchmark(config: Any, stage: str, num_updates: int) -> None:
  """Prints, as JSON, how fast a stage trains and its share of the bare step."""
  run = experiment.build(config)
  run.source.check()
  print(json.dumps(measure(run, stage, num_updates, TURNS), indent=2))


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
      print(f"  {name:<16} {(cls.__doc__ or '').strip().splitlines()[0]}")
  folder = Path(__file__).parent.parent / "configs"
  print("configs and recipes:")
  for path in sorted(folder.glob("*.py")):
    recipes = getattr(
      importlib.import_module(f"configs.{path.stem}"), "RECIPES", {}
    )
    for name, description in recipes.items():
      print(f"  configs/{path.name}:{name:<14} {description}")


def _finished_models(
  run: Experiment, workdir: epath.Path
) -> dict[str, tuple[Sampler, Round]]:
  """The finished rounds that make images, in the order of the recipe."""
  result = {}
  for name, (stage, round_) in run.rounds.items():
    sampler = stage.objective.sampler
    if sampler is None:
      continue
    if checkpoint.has_final(workdir / name):
      result[name] = (sampler, round_)
    else:
      _say(f"{name} is not finished; it is left out")
  if not result:
    raise ValueError(f"{workdir} has no finished model yet; train first")
  return result


def _contestants(
  run: Experiment, workdir: epath.Path, settings: Settings
) -> list[Contestant]:
  """The teacher, then the students made for one of the numbers of steps."""

  @functools.cache
  def generator(sampler: Sampler) -> Generator:
    size = min(settings.batch_size, settings.num_images)
    return run.generator(sampler, size)

  result = []
  for name, (sampler, round_) in _finished_models(run, workdir).items():
    steps = settings.num_steps
    if round_.num_steps:
      steps = tuple(n for n in steps if n == round_.num_steps)
    if steps:
      result.append(
        Contestant(
          name=name,
          num_steps=steps,
          generator=generator(sampler),
          load=functools.partial(run.product, workdir, name),
        )
      )
  return result


def _accuracy(
  run: Experiment, features: FeatureFn, batch_size: int
) -> float | None:
  """The classifier's on the test split; None where there is none."""
  test = run.source.held_out()
  if test is None:
    return None
  try:
    test.check()
  except (ValueError, FileNotFoundError) as error:
    _say(f"the classifier's accuracy is not measured: {error}")
    return None
  right = [
    features(batch["image"]).probabilities.argmax(axis=-1) == batch["label"]
    for batch in once(test, batch_size)
  ]
  return float(np.concatenate(right).mean())


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)

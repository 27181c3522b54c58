"""Every model of a run against the data and the teacher, step by step."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from diffdistill.arrays import Params
from diffdistill.evaluation import grids
from diffdistill.evaluation.evaluator import Generator, judge
from diffdistill.evaluation.features import FeatureFn, Reference
from diffdistill.evaluation.frechet import Moments, frechet_distance
from diffdistill.evaluation.quantise import to_host
from diffdistill.evaluation.teacher_gap import teacher_gap
from diffdistill.files import write_atomically

SHEET_COLUMNS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a comparison is made.

  Args:
    num_images: judged per row.
    num_steps: of the teacher's sampler, one row each; a student is judged at
      the steps it was made for where they are among these. The teacher's
      images at the most steps are what students are compared with.
    batch_size: images generated at a time.
    seed: of the noise.
    gap_images: pairs compared for the teacher gap, at most num_images.
    inception: the file of the FID network's weights; a classifier of the run
      judges where it is empty, and its distance is no FID.
    reference: an .npz of the FID network's statistics of the data, or of
      images; the run's own data where it is empty.
  """

  num_images: int = 2000
  num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
  batch_size: int = 500
  seed: int = 0
  gap_images: int = 500
  inception: str = ""
  reference: str = ""

  def __post_init__(self):
    if self.reference and not self.inception:
      raise ValueError(
        f"reference is {self.reference!r}, which is for the FID network; pass"
        " its weights as inception too"
      )
    # Frechet moments and the neighbours of precision want more than a few.
    for name, least in (
      ("num_images", 20),
      ("batch_size", 1),
      ("gap_images", 1),
      ("seed", 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} is {getattr(self, name)}; pass {least} or more"
        )
    if self.seed >= 2**32:
      raise ValueError(f"seed is {self.seed}; pass less than 2**32")
    if not self.num_steps or min(self.num_steps) < 1:
      raise ValueError(
        f"num_steps is {self.num_steps}; pass one or more positive numbers"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A model to judge.

  Args:
    name: of its round.
    num_steps: the numbers of steps to judge it at.
    generator: its sampler.
    load: gives its weights, when its turn comes.
    facts: more columns of its rows.
    shown: whether it is in the pictures too.
  """

  name: str
  num_steps: tuple[int, ...]
  generator: Generator
  load: Callable[[], Params]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shown: bool = True


def compare(
  teacher: Contestant,
  students: Sequence[Contestant],
  features: FeatureFn,
  reference: Reference,
  metric: str,
  kernel: str,
  settings: Settings,
  say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """One row per model and number of steps, and images from the same noise.

  Args:
    teacher: judged first; its images at the most steps are the measure of
      the students' gap.
    students: judged in order.
    features: the metric's feature network.
    reference: of the data, by the same network.
    metric: the name of the distance, such as FD-classifier.
    kernel: the name of the kernel distance; empty where there is none.
    settings: see there.
    say: told each row as it is done.

  Returns:
    (rows, images by row name for a sheet)
  """
  rows, images = [], {}
  most = max(teacher.num_steps)
  gap_images = min(settings.gap_images, settings.num_images)
  target = np.zeros(0)
  for contestant in (teacher, *students):
    params = contestant.load()
    for num_steps in sorted(contestant.num_steps, reverse=True):
      stream = Timed(contestant.generator, params, num_steps, settings)
      judged = judge(stream, features, reference, kernel=bool(kernel))
      shown = np.concatenate(stream.first)[:gap_images]
      if contestant is teacher and num_steps == most:
        target = shown
      row = {
        "model": contestant.name,
        "steps": num_steps,
        metric: judged["frechet_distance"],
        "inception_score": judged["inception_score"],
        "precision": judged.get("precision"),
        "recall": judged.get("recall"),
        **({kernel: judged.get("kernel_distance")} if kernel else {}),
        "teacher_gap": teacher_gap([shown], [target]).relative,
        "images_per_second": settings.num_images / stream.seconds,
        **contestant.facts,
      }
      rows.append(row)
      if contestant.shown:
        title = f"{contestant.name}, {num_steps} steps"
        images[title] = shown[:SHEET_COLUMNS].copy()
      distance = f"{metric} {row[metric]:.3f}"
      say(f"{contestant.name:<28} {num_steps:>4} steps  {distance}")
  (slowest,) = (
    row["images_per_second"]
    for row in rows
    if row["model"] == teacher.name and row["steps"] == most
  )
  for row in rows:
    row["speed_up"] = row["images_per_second"] / slowest
  return rows, images


class Timed:
  """The images of one row, timed, of which only the first are kept.

  Args:
    generator, params, num_steps: the model.
    settings: how many images, and how many to keep.
  """

  def __init__(
    self,
    generator: Generator,
    params: Params,
    num_steps: int,
    settings: Settings,
  ):
    self.seconds = 0.0
    self.first: list[np.ndarray] = []
    self._keep = settings.gap_images
    self._batches = generator.batches(
      params, settings.seed, settings.num_images, num_steps
    )
    # Compiled before the clock starts; the images are thrown away.
    next(generator.batches(params, settings.seed, 1, 1))

  def __iter__(self) -> Iterator[np.ndarray]:
    start = time.monotonic()
    for batch in self._batches:
      images = to_host(batch)
      self.seconds += time.monotonic() - start
      if sum(map(len, self.first)) < self._keep:
        self.first.append(images)
      yield images
      start = time.monotonic()


def distance_of_halves(pooled: Float[np.ndarray, "n d"]) -> float:
  """The distance between two halves of shuffled features: what is noise."""
  half = len(pooled) // 2
  empty = Moments.empty(pooled.shape[1])
  return frechet_distance(
    empty.update(pooled[:half]), empty.update(pooled[half : 2 * half])
  )


def write_comparison(
  workdir: epath.Path,
  summary: dict[str, Any],
  rows: Sequence[dict[str, Any]],
  images: dict[str, np.ndarray],
  metric: str,
) -> None:
  """evaluation.json, evaluation.png (the curves) and samples/compared.png.

  Students of one family are one curve, each at its own steps; rows without
  images are in neither picture.
  """
  write_atomically(
    workdir / "evaluation.json",
    json.dumps({**summary, "rows": list(rows)}, indent=2) + "\n",
  )
  curves: dict[str, list[tuple[int, float]]] = {}
  for row in rows:
    if f"{row['model']}, {row['steps']} steps" in images:
      family = row["model"].split("/")[0]
      curves.setdefault(family, []).append((row["steps"], row[metric]))
  grids.curve(curves, f"{metric} (lower is better)", workdir / "evaluation.png")
  path = workdir / "samples" / "compared.png"
  grids.save_png(grids.labelled_rows(images), path)

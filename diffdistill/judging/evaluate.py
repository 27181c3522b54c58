"""The evaluation of a run: every model judged, and what is written of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from diffdistill.evaluation import grids
from diffdistill.evaluation.trust import distrust
from diffdistill.judging.comparison import compare
from diffdistill.judging.contestants import contestants
from diffdistill.judging.judge import judge_of, nothing
from diffdistill.judging.judged_rows import judged_rows
from diffdistill.judging.summaries import (
  COPIES,
  CURVES,
  SHEET,
  keep_summary,
)
from diffdistill.run.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is known of the models of a run.

  Args:
    metric: the name of the Frechet distance, such as FD-classifier.
    summary: the judge and the settings, by name.
    rows: one for each model and number of steps: column -> value.
    images: float32 `n h w c` in [-1, 1] by the row's title, from one noise.
  """

  metric: str
  summary: Mapping[str, Any]
  rows: Sequence[dict[str, Any]]
  images: Mapping[str, np.ndarray]

  @property
  def warning(self) -> str | None:
    """Why the distances measure nothing, where the judge is not trusted."""
    why = distrust(dict(self.summary))
    if why is None:
      return None
    return f"{self.metric} does not measure these models: its judge is {why}"


def evaluate(
  run: Experiment,
  workdir: epath.Path,
  say: Callable[[str], None],
  between: Callable[[], None] = nothing,
) -> Evaluation:
  """Judges the teacher and every finished student of a run.

  A row that is done is kept, so that the next call goes on from there.

  Args:
    run: the recipe, whose `evaluation` says how.
    workdir: where the run was trained.
    say: told each row as it is done, and which files are damaged.
    between: called between batches; may raise, to leave.

  Raises:
    ValueError: where the run has no classifier or no teacher to judge by, or
      where a file or the number of images is not what FID needs.
  """
  settings = run.evaluation
  models = contestants(run, workdir, say)
  judge = judge_of(run, workdir, between, say)
  judge.check(settings.num_images)
  kept = judged_rows(run, workdir, judge.identity, say)
  rows, images = compare(models, judge, settings, say, kept)
  summary = {
    **judge.facts(),
    "num_images": settings.num_images,
    "seed": settings.seed,
    **({"labels": run.label_rule} if run.num_classes else {}),
    "rounding": "to the nearest byte",
    "devices": run.devices,
  }
  return Evaluation(
    metric=judge.metric, summary=summary, rows=rows, images=images
  )


def write_evaluation(
  workdir: epath.Path, evaluation: Evaluation, say: Callable[[str], None]
) -> None:
  """Writes an evaluation, its curves and its images, see summaries.py.

  Students of one family are one curve, each at its own steps; neither picture
  shows the last weights of a round that kept its best ones.
  """
  pictures = {SHEET: grids.as_png(grids.labelled_rows(evaluation.images))}
  summary = {
    **evaluation.summary,
    "metric": evaluation.metric,
    "rows": list(evaluation.rows),
  }
  try:
    from diffdistill.evaluation.drawing import as_png, distances

    pictures[CURVES] = as_png(distances(summary))
  except ImportError:
    path = workdir / COPIES[CURVES]
    say(f"{path} is not drawn without matplotlib; run `pip install matplotlib`")
  keep_summary(workdir, summary, pictures, say)

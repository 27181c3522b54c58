"""Evaluates all models of a run and writes the result."""

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from diffdistill.evaluation import grids
from diffdistill.evaluation.labelled import Labels, labelled_rows
from diffdistill.evaluation.shown import Picture, Table
from diffdistill.evaluation.titles import (
  SAME_NOISE,
  class_titles,
  column_titles,
)
from diffdistill.evaluation.trust import distrust
from diffdistill.judging.comparison import SHEET_COLUMNS, compare
from diffdistill.judging.contestants import Contestant, contestants
from diffdistill.judging.judge import judge_of, nothing
from diffdistill.judging.judged_rows import judged_rows
from diffdistill.judging.repeats import Spreads, spreads
from diffdistill.judging.summaries import (
  COPIES,
  CURVES,
  SHEET,
  keep_summary,
)
from diffdistill.judging.tidy_rows import tidy_rows
from diffdistill.run.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
  """The result of an evaluation; a notebook shows it as a table of distances.

  Args:
    metric: the name of the Frechet distance, such as FD-classifier.
    summary: the judge and the settings, by name.
    rows: for each model and number of steps a dict: column -> value.
    images: float32 `n h w c` in [-1, 1] by the row's title, from one noise.
    run: the name of the run.
    config: the config of the run, as plain values.
    columns: the title of each image of a row, such as its class.
    spreads: the least and the most distance over evaluations with other seeds.
  """

  metric: str
  summary: Mapping[str, Any]
  rows: Sequence[dict[str, Any]]
  images: Mapping[str, np.ndarray]
  run: str = ""
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  columns: Sequence[str] = ()
  spreads: Spreads = dataclasses.field(default_factory=dict)

  @property
  def warning(self) -> str | None:
    """Why the distances mean nothing; None if the judge is trusted."""
    why = distrust(dict(self.summary))
    if why is None:
      return None
    return f"{self.metric} does not measure these models: its judge is {why}"

  @property
  def written(self) -> dict[str, Any]:
    """The content of evaluation.json."""
    return {**self.summary, "metric": self.metric, "rows": list(self.rows)}

  def records(self) -> list[dict[str, Any]]:
    """The rows with the settings in each, for `pandas.DataFrame(...)`.

    They have the columns that `diffdistill report --out=rows.csv` writes.
    """
    return tidy_rows(self.written, self.run, self.config)

  def sheet(self) -> Picture:
    """A picture with the images of each row; a column begins from one noise."""
    count = min(map(len, self.images.values()), default=0)
    labels = Labels(title=SAME_NOISE, columns=self.columns[:count])
    return Picture(grids.as_png(labelled_rows(self.images, labels)))

  def curve(self) -> Picture:
    """A chart of the distances against sampler steps.

    The students of one stage form one curve, each at its own number of steps.
    If a round kept its best weights, its last weights are left out.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    from diffdistill.evaluation.drawing import distances, picture

    return picture(distances(self.written, self.spreads))

  def __repr__(self) -> str:
    return "\n".join(
      [*self._warnings(), repr(Table(self.rows)), *self._facts()]
    )

  def _repr_html_(self) -> str:
    table = Table(self.rows)._repr_html_()
    lines = (
      "<br>".join(map(html.escape, lines))
      for lines in (self._warnings(), self._facts())
    )
    before, after = (f"<p>{text}</p>\n" if text else "" for text in lines)
    return f"<div>\n{before}{table}{after}</div>"

  def _warnings(self) -> list[str]:
    return [self.warning] if self.warning else []

  def _facts(self) -> list[str]:
    return [
      f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
      for name, value in self.summary.items()
    ]


def evaluate(
  run: Experiment,
  workdir: epath.Path,
  say: Callable[[str], None],
  between: Callable[[], None] = nothing,
  beside: Sequence[Contestant] = (),
  so_far: bool = False,
) -> Evaluation:
  """Judges the teacher and every finished student of a run.

  Each finished row is kept, so the next call continues after it.

  Args:
    run: the recipe; its `evaluation` holds the settings.
    workdir: the folder where the run was trained.
    say: receives one line for each finished row and each damaged file.
    between: called between batches; it may raise to stop the evaluation.
    beside: other models, which are judged like students of this run.
    so_far: whether to judge students that still train too.

  Raises:
    ValueError: if the run has no classifier or no teacher to judge by, if a
      file or the number of images does not fit FID, or if another model has
      another image shape or the name of a model of the run.
  """
  settings = run.evaluation
  models = contestants(run, workdir, say, so_far)
  for model in beside:
    _check_beside(model, run, [other.name for other in models])
    models.append(model)
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
  if beside:
    summary["exported"] = ", ".join(model.name for model in beside)
  written = {**summary, "metric": judge.metric, "rows": rows}
  return Evaluation(
    metric=judge.metric,
    summary=summary,
    rows=rows,
    images=images,
    run=workdir.name,
    config=run.config,
    columns=_columns(models, run.source.class_names),
    # Damaged files are named when this evaluation is written.
    spreads=spreads(workdir, written, lambda _: None),
  )


def _columns(
  models: Sequence[Contestant], class_names: Sequence[str]
) -> Sequence[str]:
  """The titles of the columns of a sheet that compares the shown models."""
  classes = [
    class_titles(model.generator.labels_of(0, SHEET_COLUMNS), class_names)
    for model in models
    if model.shown
  ]
  return column_titles(classes, SHEET_COLUMNS)


def write_evaluation(
  workdir: epath.Path, evaluation: Evaluation, say: Callable[[str], None]
) -> None:
  """Writes an evaluation, its curves and its images, see summaries.py."""
  pictures = {SHEET: evaluation.sheet().png}
  try:
    pictures[CURVES] = evaluation.curve().png
  except ImportError:
    path = workdir / COPIES[CURVES]
    say(f"{path} is not drawn without matplotlib; run `pip install matplotlib`")
  keep_summary(workdir, evaluation.written, pictures, say)


def _check_beside(
  model: Contestant, run: Experiment, names: Sequence[str]
) -> None:
  """Refuses a model that cannot be a row of this run's table."""
  if model.name in names:
    raise ValueError(
      f"{model.name} is the name of two models; rename the folder of the"
      " exported one"
    )
  theirs, ours = model.generator.image_shape, run.source.image_shape
  if theirs != ours:
    raise ValueError(
      f"{model.name} makes images of shape {theirs}, but those of the run are"
      f" {ours}; pass a model of the same shape"
    )

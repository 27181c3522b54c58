"""Selects the weights with the best score as those that a round hands on."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

from etils import epath

from diffdistill.arrays import Params
from diffdistill.ranges import Images, Range, Updates, check_ranges
from diffdistill.system import hosts
from diffdistill.training.best import best_of, load_best, save_best
from diffdistill.training.sharding import Layout

SCORES = ("held_out_loss", "distance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """How a stage selects the weights that become a round's product.

  The product of a round is the weights that it hands on. Here it is the weights
  with the best score. The weights at the end of the round are kept too, as
  `last_<name>`.

  Args:
    by: "held_out_loss" scores by the loss on pairs that are not trained on;
      "distance" scores by the Frechet distance, measured with the run's
      classifier.
    every: updates between scores; the end of the round is scored too.
    patience: the round ends after this many scores in a row that are not
      better; 0 means never.
    num_images: how many images are made to measure a distance.
  """

  by: str
  every: Updates
  patience: Annotated[int, Range(0, 10**6)] = 0
  num_images: Images = 1000

  def __post_init__(self):
    if self.by not in SCORES:
      raise ValueError(f"by is {self.by!r}; pass one of {', '.join(SCORES)}")
    check_ranges(self)


class Selector:
  """Scores a round's weights at intervals, and keeps the best on disk.

  The selector keeps nothing else on disk. A resumed round computes the scores
  after its checkpoint again, with the same results.

  Args:
    selection: how often to score, and when to end the round.
    round_dir: the round's directory.
    score: a function that returns the score of weights. The lowest score is the
      best; NaN is never the best.
    layout: the mesh, and where parameters lie on it.
  """

  def __init__(
    self,
    selection: Selection,
    round_dir: epath.Path,
    score: Callable[[Params], float],
    layout: Layout,
  ):
    self._selection = selection
    self._round_dir = round_dir
    self._score = score
    self._layout = layout
    self._best = best_of(round_dir)
    # Read the best weights now, so that damage is found before training starts.
    self.best()

  def due(self, step: int) -> bool:
    """Whether to score the weights after `step` updates."""
    return step % self._selection.every == 0

  def consider(self, product: Params, step: int) -> float:
    """Scores the weights after `step` updates, and keeps the best."""
    # The first process decides for all, because the scores of other processes
    # may differ in the last digits.
    here = float(self._score(product))
    score = hosts.on_first(lambda: here)
    if self._best is None or score < self._best.score:
      self._best = save_best(self._round_dir, product, step, score)
    return score

  def exhausted(self, step: int) -> bool:
    """Whether the best score is so old that the round must end."""
    selection = self._selection
    if not selection.patience or self._best is None:
      return False
    return step - self._best.step >= selection.patience * selection.every

  def best(self) -> Params | None:
    """The best weights so far; None if every score was NaN."""
    if self._best is None:
      return None
    return load_best(self._round_dir, self._best, self._layout)

"""Keeps the best weights of a round that runs, if its stage selects them.

The weights are in the folder `best/<step>_<score>/`. A JSON file beside the
folder, with the same name, has the digests of the arrays of weights. The JSON
file is written last, after the weights were read back from the disk. A folder
without such a file is ignored.
"""

import dataclasses
import math
from typing import Any

from etils import epath

from diffdistill.arrays import Params
from diffdistill.system import hosts
from diffdistill.system.files import matching, read_json, write_json
from diffdistill.training import stored
from diffdistill.training.disk_faults import mendable
from diffdistill.training.file_digests import check_files, files_of
from diffdistill.training.sharding import Layout

PRODUCT = "product"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """The update after which a round's weights were best, and their score."""

  step: int
  score: float


def save_best(
  round_dir: epath.Path, product: Params, step: int, score: float
) -> Best | None:
  """Saves these weights as the best ones, and removes the best weights so far.

  Weights with a score of NaN are not saved.

  Raises:
    ValueError: if the disk does not keep the weights; the message is one line.
  """
  if math.isnan(score):
    return None
  # The score is a part of the folder's name, so the name of the JSON file holds
  # the score too.
  name = _best_name(Best(step=step, score=score))
  folder = round_dir / "best" / name
  expected = stored.save(folder, {PRODUCT: product})

  def record_them() -> None:
    record = {**expected, "files": files_of(folder)}
    write_json(folder.with_name(f"{name}.json"), record)
    for old in folder.parent.iterdir():
      if old.name not in (name, f"{name}.json"):
        stored.remove(old)

  mendable(folder, lambda: hosts.on_first(record_them))
  return Best(step=step, score=score)


def best_of(round_dir: epath.Path) -> Best | None:
  """Finds the weights with the best score on disk; None if there are none.

  The first process looks at the disk and tells the other processes.
  """
  folder = round_dir / "best"

  def names() -> list[str]:
    paths = matching(folder, "*.json")
    return [path.stem for path in paths if stored.is_whole(folder / path.stem)]

  kept = []
  for name in hosts.on_first(names):
    step, _, score = name.partition("_")
    if step.isdigit():
      kept.append(Best(step=int(step), score=float.fromhex(score)))
  return min(kept, key=lambda best: best.score, default=None)


def load_best(round_dir: epath.Path, best: Best, layout: Layout) -> Params:
  """Loads the best weights.

  Raises:
    ValueError: if the weights are damaged.
  """
  place = f"best/{_best_name(best)}"

  def expected() -> Any:
    try:
      record = read_json(round_dir / f"{place}.json")
      check_files(round_dir / place, record["files"])
      return record[PRODUCT]
    except ValueError as error:
      raise stored.refusal(error, round_dir) from error

  digests = hosts.on_first(expected)
  return stored.load_weights(
    round_dir, round_dir / place, PRODUCT, digests, layout
  )


def _best_name(best: Best) -> str:
  return f"{best.step}_{best.score.hex()}"

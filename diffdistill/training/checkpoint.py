"""Checkpoints and final results on disk, through Orbax v1.

The only file that names Orbax. Every write is atomic: Orbax writes beside the
place and renames or, in a bucket, writes there and marks it last. A round's
directory holds `checkpoints/<step>/` while it runs, `best/<step>/` where its
best weights are kept, and `final/` when it is done. Where weights were left
behind, `left_behind` names them; where all were, `final` is a plain file.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from diffdistill import hosts
from diffdistill.arrays import Params
from diffdistill.files import in_bucket, write_atomically
from diffdistill.training.sharding import Layout
from diffdistill.training.state import TrainState, with_shardings

# Orbax's mark of what it has written whole.
COMMITTED = "commit_success.txt"
LEFT_BEHIND = "left_behind"


class Checkpoints:
  """The running checkpoints of one round, newest kept.

  Args:
    round_dir: the round's directory.
    keep: how many to keep; with two or more, a newest one that a crash broke
      leaves one to go on from.
  """

  def __init__(self, round_dir: epath.Path, keep: int = 2):
    # Typed as any: Orbax's own policies do not match its protocol of policies.
    policy: Any = ocp.training.preservation_policies.LatestN(keep)
    self._directory = _absolute(round_dir) / "checkpoints"
    self._checkpointer = ocp.training.Checkpointer(
      self._directory,
      preservation_policy=policy,
      cleanup_tmp_directories=True,
    )

  def save(self, state: TrainState, step: int) -> None:
    """Saves in the background; waits for the save before it."""
    self._checkpointer.save_async(
      step, _as_tree(state), force=True, overwrite=True
    )

  def restore(self, abstract: TrainState) -> TrainState | None:
    """The newest readable state, or None where there is no checkpoint.

    Args:
      abstract: shapes, dtypes and shardings to restore to.

    Raises:
      ValueError: where there are checkpoints and none can be read.
    """
    here = sorted(
      (c.step for c in self._checkpointer.checkpoints), reverse=True
    )
    steps = hosts.on_first(lambda: here)
    for step in steps:
      tree: Any = None
      try:
        tree = self._checkpointer.load(step, _as_tree(abstract))
      except Exception as error:
        # Orbax and its storage raise many kinds for a damaged file.
        logging.warning(
          "skipped the unreadable checkpoint %s (%s)",
          self._directory / str(step),
          _first_line(error),
        )
      if hosts.everywhere(tree is not None):
        return TrainState(**tree)
    if steps:
      raise ValueError(
        f"none of the checkpoints {steps} in {self._directory} can be read;"
        " restore one of them, or remove that folder to start the round anew"
      )
    return None

  def close(self) -> None:
    """Waits for what is being saved."""
    self._checkpointer.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    """Waits for what is being saved: whatever happened, it is worth having.

    Unless another process is lost, for which it would wait too.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    if not (lost and jax.process_count() > 1):
      self.close()


def discard(round_dir: epath.Path) -> None:
  """Removes what a round that is done needed while it ran."""

  def remove() -> None:
    (round_dir / "checkpoints").rmtree(missing_ok=True)
    (round_dir / "best").rmtree(missing_ok=True)

  # After all have read and written what goes.
  hosts.meet()
  hosts.on_first(remove)


def to_go_on_from(round_dir: epath.Path) -> list[epath.Path]:
  """The folders that a round that is not done goes on from."""
  folder = round_dir / "checkpoints"
  steps = [p for p in folder.glob("*") if p.name.isdigit() and _is_whole(p)]
  newest = sorted(steps, key=lambda path: int(path.name))[-1:]
  best = round_dir / "best"
  return [*newest, *([best] if best.exists() else [])]


def has_final(round_dir: epath.Path) -> bool:
  """Whether the round is done, as the first process sees it."""
  return hosts.on_first(lambda: _is_whole(round_dir / "final"))


def save_final(round_dir: epath.Path, products: Mapping[str, Params]) -> None:
  """Writes the products of a round, by name."""
  ocp.save_checkpointables(
    _absolute(round_dir) / "final", dict(products), overwrite=True
  )


def load_final(round_dir: epath.Path, name: str, layout: Layout) -> Params:
  """The product called `name` of a finished round, laid out on the mesh.

  Raises:
    ValueError: where the round is not finished, or has no such product.
  """
  names = product_names(round_dir)
  if name not in names:
    raise ValueError(
      f"{round_dir} holds no {name}, only {', '.join(sorted(names))}"
    )
  return _load(_absolute(round_dir) / "final", name, layout)


def product_names(round_dir: epath.Path) -> frozenset[str]:
  """The names of what a finished round made, as the first process sees it.

  Raises:
    ValueError: where the round is not finished, or its result is damaged.
  """
  path = _absolute(round_dir) / "final"

  def names() -> list[str]:
    if not _is_whole(path):
      raise ValueError(
        f"{round_dir} has no final result; train until that round is finished"
      )
    if path.is_file():
      raise ValueError(
        f"{round_dir} is done, but its weights were left behind where it was"
        f" trained; bring {path} from there, or remove {round_dir} to train it"
        " again"
      )
    try:
      return sorted(ocp.checkpointables_metadata(path).metadata)
    except Exception as error:
      raise _damaged(path, error) from error

  return frozenset(hosts.on_first(names))


def leave_behind(round_dir: epath.Path, names: Collection[str]) -> None:
  """Says of a finished round which of its products are where it was trained."""
  text = "".join(f"{name}\n" for name in sorted(names))
  if names:
    hosts.on_first(lambda: write_atomically(round_dir / LEFT_BEHIND, text))
  if not (round_dir / "final").exists():
    mark_final(round_dir, "done; its weights are where it was trained")


def products_of(round_dir: epath.Path) -> tuple[frozenset[str], frozenset[str]]:
  """The names of what a finished round made: (what is here, what is not).

  Raises:
    ValueError: as of `product_names`.
  """

  def left() -> list[str]:
    path = round_dir / LEFT_BEHIND
    return path.read_text().split() if path.exists() else []

  none = hosts.on_first(lambda: (round_dir / "final").is_file())
  here = frozenset() if none else product_names(round_dir)
  return here, frozenset(hosts.on_first(left))


def mark_final(round_dir: epath.Path, words: str) -> None:
  """Says that a round without weights, of pairs, is done."""
  hosts.on_first(lambda: write_atomically(round_dir / "final", words + "\n"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """Where a round's best weights are: after `step` updates, with that score."""

  step: int
  score: float


def save_best(
  round_dir: epath.Path, product: Params, step: int, score: float
) -> Best | None:
  """Keeps these weights in place of those kept before; NaN is not kept."""
  if math.isnan(score):
    return None
  folder = _absolute(round_dir) / "best"
  # The score is in the name: one rename makes both true. The old ones go after.
  name = _best_name(Best(step=step, score=score))
  ocp.save_checkpointables(folder / name, {"product": product}, overwrite=True)

  def remove_others() -> None:
    for old in folder.iterdir():
      if old.name != name:
        old.rmtree()

  hosts.on_first(remove_others)
  return Best(step=step, score=score)


def best_of(round_dir: epath.Path) -> Best | None:
  """The best so far, as the first process sees it; None where there is none."""
  folder = _absolute(round_dir) / "best"

  def names() -> list[str]:
    paths = folder.iterdir() if folder.exists() else ()
    return [path.name for path in paths if _is_whole(path)]

  kept = []
  for name in hosts.on_first(names):
    step, _, score = name.partition("_")
    if step.isdigit():
      # A name that Orbax has not yet renamed begins otherwise or ends longer.
      try:
        kept.append(Best(step=int(step), score=float.fromhex(score)))
      except ValueError:
        continue
  return min(kept, key=lambda best: best.score, default=None)


def load_best(round_dir: epath.Path, best: Best, layout: Layout) -> Params:
  """The weights kept as the best."""
  folder = _absolute(round_dir) / "best" / _best_name(best)
  return _load(folder, "product", layout)


def _is_whole(path: epath.Path) -> bool:
  """Whether all is there of what has this name.

  A bucket can rename no folder: there Orbax gives the name first, and its mark
  last. What marks a round of pairs is a plain file.
  """
  if in_bucket(path):
    return (path / COMMITTED).exists() or path.is_file()
  return path.exists()


def _best_name(best: Best) -> str:
  return f"{best.step}_{best.score.hex()}"


def _load(path: epath.Path, name: str, layout: Layout) -> Params:
  try:
    stored = ocp.checkpointables_metadata(path).metadata[name]
    shapes = with_shardings(stored, layout)
    return ocp.load(path, shapes, checkpointable_name=name)
  except Exception as error:
    raise _damaged(path, error) from error


def _damaged(path: epath.Path, error: Exception) -> ValueError:
  """As in `restore`: storage raises many kinds for a damaged file."""
  return ValueError(
    f"{path} cannot be read ({_first_line(error)}); restore it, or remove it"
    " to train that round again"
  )


def _absolute(path: epath.Path) -> epath.Path:
  """The same place, as Orbax wants it; a bucket's path is absolute."""
  return path if path.is_absolute() else path.resolve()


def _as_tree(state: TrainState) -> Any:
  """A plain dict: what is on disk does not depend on our class."""
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"

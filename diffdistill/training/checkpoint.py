"""The final results of rounds, each with a digest of its arrays.

A round's directory holds `checkpoints/` while the round runs (running.py),
`best/` if its best weights are selected (best.py), and `final/`
once it is done.

A round is done if and only if it has a file `final.json`. The file has the
digests of the arrays in `final/`. It is written last, after `final/` was read
back. It also names the trees of weights that were left on another machine. A
round that makes pairs of noise and images has the file, but no weights and no
folder `final/`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from absl import logging
from etils import epath

from diffdistill.arrays import Params
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json
from diffdistill.training import stored
from diffdistill.training.disk_faults import mendable
from diffdistill.training.file_digests import (
  DamagedError,
  check_files,
  files_of,
)
from diffdistill.training.running import newest_sound, steps_in
from diffdistill.training.sharding import Layout

FINAL = "final.json"


def is_done(round_dir: epath.Path, layout: Layout) -> bool:
  """Whether a round is done, so that it need not be trained.

  If the round still has checkpoints, its final result is read first. If the
  result is damaged, the round is not done: it goes on from its newest
  checkpoint.

  Raises:
    ValueError: if the final result is damaged and there are no checkpoints.
  """

  def see() -> dict[str, Any]:
    going_on = bool(steps_in(round_dir / "checkpoints"))
    try:
      record = _record(round_dir)
      if record is not None:
        # Check only the sizes of the files here. The arrays are checked when
        # they are loaded.
        _check_files(round_dir, record, whole=False)
    except ValueError as error:
      if not going_on:
        raise
      return {"damage": str(error)}
    if record is None and (round_dir / "final").exists():
      return {"damage": f"{round_dir / 'final'} has no {FINAL} beside it"}
    leftovers = any((round_dir / n).exists() for n in ("checkpoints", "best"))
    done = record is not None
    return {"done": done, "unsure": done and leftovers, "going_on": going_on}

  seen = hosts.on_first(see)
  if seen.get("unsure"):
    try:
      _read_final_back(round_dir, layout)
    except DamagedError as error:
      if not seen["going_on"]:
        raise stored.refusal(error, round_dir) from error
      seen = {"damage": str(error)}
  if "damage" in seen:
    logging.warning(
      "%s; that round is not done, and is trained from its newest checkpoint",
      seen["damage"],
    )
  return bool(seen.get("done"))


def has_final(round_dir: epath.Path) -> bool:
  """Whether the round is done. The first process looks and tells the others.

  Raises:
    ValueError: if `final.json` is damaged and there are no checkpoints.
  """

  def see() -> bool:
    try:
      return _record(round_dir) is not None
    except ValueError:
      if not steps_in(round_dir / "checkpoints"):
        raise
      return False

  return hosts.on_first(see)


def discard(round_dir: epath.Path) -> None:
  """Removes the checkpoints and the best weights of a finished round."""

  def remove() -> None:
    for name in ("checkpoints", "best"):
      stored.remove(round_dir / name)
    stored.clean(round_dir)

  # Wait here until no process reads the files that are removed next.
  hosts.meet()
  hosts.on_first(remove)


def to_go_on_from(round_dir: epath.Path) -> list[epath.Path]:
  """Lists the files and folders from which an unfinished round is resumed.

  Raises:
    ValueError: if there are checkpoints and all of them are damaged.
  """
  best = round_dir / "best"
  found = newest_sound(round_dir / "checkpoints")
  return [*found, *([best] if best.exists() else [])]


def save_final(
  round_dir: epath.Path,
  products: Mapping[str, Params],
  left_behind: Collection[str] = (),
) -> None:
  """Writes the weights of a finished round, reads them back, marks it as done.

  Args:
    round_dir: the round's directory.
    products: the trees of weights that the round keeps, by name.
    left_behind: names of trees of weights that were left on another machine.

  Raises:
    ValueError: if the disk does not keep the weights; the message is one line.
  """
  folder = round_dir / "final"
  mendable(
    folder, lambda: hosts.on_first(lambda: stored.remove(round_dir / FINAL))
  )
  expected = stored.save(folder, products)

  def say() -> None:
    fields = {
      "products": expected,
      "left_behind": sorted(left_behind),
      "files": files_of(folder),
    }
    write_json(round_dir / FINAL, fields)

  mendable(folder, lambda: hosts.on_first(say))


def mark_final(
  round_dir: epath.Path, words: str, left_behind: Collection[str] = ()
) -> None:
  """Marks a round as done although its weights are not in this workdir.

  Args:
    round_dir: the round's directory.
    words: a note in the file for people who read it.
    left_behind: names of trees of weights that were left on another machine.
  """
  fields = {
    "products": {},
    "left_behind": sorted(left_behind),
    "files": {},
    "words": words,
  }
  path = round_dir / FINAL
  mendable(path, lambda: hosts.on_first(lambda: write_json(path, fields)))


def load_final(round_dir: epath.Path, name: str, layout: Layout) -> Params:
  """Loads one tree of weights of a finished round onto the mesh.

  Raises:
    ValueError: if the round is not finished, has no tree called `name`, or is
      damaged.
  """
  names = product_names(round_dir)
  if name not in names:
    raise ValueError(
      f"{round_dir} holds no {name}, only {', '.join(sorted(names))}"
    )

  def expected() -> Any:
    record = _record(round_dir)
    assert record is not None  # `product_names` has checked this
    _check_files(round_dir, record, whole=True)
    return record["products"][name]

  digests = hosts.on_first(expected)
  return stored.load_weights(
    round_dir, round_dir / "final", name, digests, layout
  )


def product_names(round_dir: epath.Path) -> frozenset[str]:
  """Lists the trees of weights of a finished round that are in this workdir.

  Raises:
    ValueError: if the round is not finished, if its weights are elsewhere, or
      if `final.json` is damaged.
  """

  def names() -> list[str]:
    record = _record(round_dir)
    if record is None:
      raise ValueError(
        f"{round_dir} has no final result; train until that round is finished"
      )
    if not record["products"]:
      raise ValueError(
        f"{round_dir} is done, but its weights were left behind where it was"
        f" trained; bring {round_dir / 'final'} and {FINAL} from there, or"
        f" remove {round_dir} to train it again"
      )
    return sorted(record["products"])

  return frozenset(hosts.on_first(names))


def products_of(round_dir: epath.Path) -> tuple[frozenset[str], frozenset[str]]:
  """Lists the trees of weights that a finished round has made.

  Returns two sets of names: the trees in this workdir, and the trees that were
  left on another machine.

  Raises:
    ValueError: if the round is not finished, or `final.json` is damaged.
  """

  def names() -> list[list[str]]:
    record = _record(round_dir)
    if record is None:
      raise ValueError(
        f"{round_dir} has no final result; train until that round is finished"
      )
    return [list(record["products"]), record["left_behind"]]

  here, left = hosts.on_first(names)
  return frozenset(here), frozenset(left)


def _record(round_dir: epath.Path) -> dict[str, Any] | None:
  """Reads a round's `final.json`; None if the round is not finished."""
  path = round_dir / FINAL
  try:
    return read_json(path)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise stored.refusal(error, round_dir) from error


def _check_files(
  round_dir: epath.Path, record: Mapping[str, Any], whole: bool
) -> None:
  """Refuses a final result if one of its files is missing or has changed.

  Raises:
    ValueError: if a file is missing or has changed; the message names the first
      such file.
  """
  try:
    check_files(round_dir / "final", record["files"], whole)
  except DamagedError as error:
    raise stored.refusal(error, round_dir) from error


def _read_final_back(round_dir: epath.Path, layout: Layout) -> None:
  """Reads the whole final result back from the disk."""

  def products() -> Any:
    record = _record(round_dir)
    assert record is not None  # the caller has checked this
    check_files(round_dir / "final", record["files"])
    return record["products"]

  expected = hosts.on_first(products)
  shapes = {
    name: stored.shapes_like(tree, layout) for name, tree in expected.items()
  }
  stored.read_back(round_dir / "final", expected, shapes)

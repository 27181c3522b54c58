"""Trees of arrays on disk, through Orbax v1, and what is wrong with them.

The only file that names Orbax. A folder holds one tree or several, by name.
Every write is atomic: Orbax writes beside the place and renames or, in a
bucket, writes there and marks it last. Whether the arrays are those that were
saved is known by their digests (fingerprint.py), which the caller keeps.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from diffdistill.arrays import Params
from diffdistill.system import hosts
from diffdistill.system.files import in_bucket, matching
from diffdistill.training.disk_faults import mendable
from diffdistill.training.file_digests import DamagedError
from diffdistill.training.fingerprint import by_name, described, digests
from diffdistill.training.sharding import Layout
from diffdistill.training.silence import silence
from diffdistill.training.state import with_shardings

T = TypeVar("T")

# Orbax's mark of what it has written whole.
COMMITTED = "commit_success.txt"
# In the name of every folder that Orbax has not renamed yet.
UNFINISHED = ".orbax-checkpoint-tmp"
# Arrays that are read back at once, of all that are read back.
BYTES_AT_ONCE = 2**28


# Orbax numbers what it does; a reader in another thread must not come between.
_ONE_AT_A_TIME = threading.RLock()


@runtime_checkable
class Saving(Protocol):
  """A save that goes on in the background."""

  def result(self) -> Any: ...


def save(folder: epath.Path, trees: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the trees in place of what is there, and reads them back.

  Returns:
    The digests of their arrays.

  Raises:
    ValueError: in one line, where the disk does not keep them.
  """
  expected = {name: digests(tree) for name, tree in trees.items()}
  try:
    finish(folder, begin(folder, trees))
  except ValueError:
    if hosts.is_first():
      clean(folder.parent)
    raise
  try:
    read_back(folder, expected, shapes_of(trees))
  except DamagedError as error:
    hosts.on_first(lambda: remove(folder))
    raise ValueError(
      f"{error}, although it was saved just now; check that disk, and run the"
      " command again"
    ) from error
  return expected


def begin(folder: epath.Path, trees: Mapping[str, Any]) -> Saving:
  """Begins to write; the arrays may change as soon as it returns.

  Raises:
    ValueError: in one line, where the disk does not take them.
  """

  silence()

  def act() -> Saving:
    with _ONE_AT_A_TIME:
      return ocp.save_checkpointables_async(
        absolute(folder), dict(trees), overwrite=True
      )

  return mendable(folder, act)


def finish(folder: epath.Path, saving: Saving) -> None:
  """Waits for what `begin` began.

  Raises:
    ValueError: in one line, where the disk does not take it.
  """
  mendable(folder, saving.result)


def load(folder: epath.Path, name: str, shapes: Any, expected: Any) -> Any:
  """One tree, on the devices, as it was saved.

  Args:
    folder: where it is.
    name: of the tree.
    shapes: shapes, dtypes and shardings to load to.
    expected: the digests of its arrays.

  Raises:
    DamagedError: where it is not; names the first array that differs.
  """
  tree = _read(
    folder,
    lambda: ocp.load(absolute(folder), shapes, checkpointable_name=name),
  )
  compare(folder, name, by_name(expected), by_name(digests(tree)))
  return tree


def load_weights(
  round_dir: epath.Path,
  folder: epath.Path,
  name: str,
  expected: Any,
  layout: Layout,
) -> Params:
  """One tree of weights of a round, laid out on a mesh.

  Raises:
    ValueError: where it is damaged, with the remedy.
  """
  try:
    return load(folder, name, shapes_like(expected, layout), expected)
  except DamagedError as error:
    raise refusal(error, round_dir) from error


def read_back(
  folder: epath.Path,
  expected: Mapping[str, Any],
  shapes: Mapping[str, Any] | None = None,
) -> None:
  """Reads every array from the disk, a few at a time.

  One process reads into the memory of the host, which leaves its devices to
  others; several read together what each of them holds.

  Args:
    folder: where they are.
    expected: the digests of the arrays, by name of tree.
    shapes: shapes, dtypes and shardings by name of tree; by default as the disk
      says, where there is one process.

  Raises:
    DamagedError: where one differs from what was saved; names the first.
  """
  for name, wanted in expected.items():
    tree = None if shapes is None else shapes[name]
    if tree is None:
      tree = _read(folder, lambda name=name: _on_disk(folder, name))
    if jax.process_count() == 1:
      tree = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
    actual: dict[str, str] = {}
    for part in _parts(tree):
      loaded = _read(
        folder,
        lambda name=name, part=part: ocp.load(
          absolute(folder), part, checkpointable_name=name
        ),
      )
      read = jax.tree.map(lambda leaf: None if leaf is ... else leaf, loaded)
      actual |= by_name(digests(read))
    compare(folder, name, by_name(wanted), actual)


def compare(
  folder: epath.Path,
  name: str,
  expected: Mapping[str, str],
  actual: Mapping[str, str],
) -> None:
  """Compares the digests of one tree with those that were kept.

  Raises:
    DamagedError: where they differ; names the first array.
  """
  wrong = [
    array
    for array in sorted(expected.keys() | actual.keys())
    if expected.get(array) != actual.get(array)
  ]
  if wrong:
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise DamagedError(
      f"{folder} is damaged: the array {wrong[0]} of {name}{more} differs from"
      " what was saved"
    )


def is_whole(folder: epath.Path) -> bool:
  """Whether Orbax has finished what has this name.

  A bucket can rename no folder: there Orbax gives the name first, and its mark
  last.
  """
  if in_bucket(folder):
    return (folder / COMMITTED).exists()
  return folder.is_dir()


def clean(folder: epath.Path) -> None:
  """Removes what killed writes left in a folder."""
  for pattern in (f"*{UNFINISHED}*", ".*.partial"):
    for path in matching(folder, pattern):
      remove(path)


def remove(path: epath.Path) -> None:
  """Removes a file, a folder or nothing."""
  if path.is_dir():
    path.rmtree(missing_ok=True)
  else:
    path.unlink(missing_ok=True)


def absolute(path: epath.Path) -> epath.Path:
  """The same place, as Orbax wants it; a bucket's path is absolute."""
  return path if path.is_absolute() else path.resolve()


def first_line(error: BaseException) -> str:
  """What an error says, short."""
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def refusal(error: Exception, round_dir: epath.Path) -> ValueError:
  """What is damaged, with the remedy."""
  return ValueError(
    f"{error}; restore it, or remove {round_dir} to train that round again"
  )


def shapes_like(expected: Any, layout: Layout) -> Any:
  """What to load weights to, of which these are the digests."""
  return with_shardings(jax.tree.map(described, expected), layout)


def shapes_of(tree: Any) -> Any:
  """What a tree of arrays is loaded to, to be as it is."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    ),
    tree,
  )


def _on_disk(folder: epath.Path, name: str) -> Any:
  """The shapes and dtypes that Orbax has written down."""
  return ocp.checkpointables_metadata(absolute(folder)).metadata[name]


def _read(folder: epath.Path, act: Callable[[], T]) -> T:
  """Reads on every process, or refuses on every process.

  Raises:
    DamagedError: where one of them cannot read.
  """
  reason, result = "another process cannot", None
  silence()
  try:
    with _ONE_AT_A_TIME:
      result = act()
  except Exception as error:
    # Orbax and its storage raise many kinds for a damaged file.
    failed: Exception | None = error
    reason = first_line(error)
  else:
    failed = None
  if not hosts.everywhere(failed is None):
    raise DamagedError(f"{folder} cannot be read ({reason})") from failed
  return cast(T, result)


def _parts(shapes: Any) -> Iterator[Any]:
  """The tree again and again, each time with some leaves in place of `...`."""
  leaves, structure = jax.tree.flatten(shapes)
  chosen: list[int] = []
  size = 0
  for i, leaf in enumerate(leaves):
    chosen.append(i)
    size += math.prod(leaf.shape) * leaf.dtype.itemsize
    if size >= BYTES_AT_ONCE or i == len(leaves) - 1:
      part = [x if j in chosen else ... for j, x in enumerate(leaves)]
      yield jax.tree.unflatten(structure, part)
      chosen, size = [], 0

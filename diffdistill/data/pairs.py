"""Stores pairs of noise and teacher's image, and makes missing ones.

With a deterministic sampler, the teacher's image is a function of the noise.
Pairs of noise and image are made once and trained on many times (Luhman &
Luhman 2021). Pair i depends on (seed, i) only. So a missing shard can be made
again, and a killed run makes at most one shard twice.

If not all pairs fit on the disk, the disk holds a pool of P < S training shards
at a time, which `pair_pipeline` moves over all S.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from etils import epath

from diffdistill.data.pair_arrays import (
  Draw,
  DrawNoise,
  checksum,
  drawn_arrays,
  drawn_noise,
  empty_arrays,
)
from diffdistill.data.pair_set import PairSet
from diffdistill.data.shards import (
  Arrays,
  check_end,
  read_shard,
  readable,
  remove_partial,
  write_shard,
)
from diffdistill.ranges import Range, check_ranges
from diffdistill.system import hosts
from diffdistill.system.files import matching, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairStore:
  """Stores pairs in a directory, and reads them.

  Every process of a run makes the same calls in the same order: shards are
  drawn by all together, written and removed by the first, and read by each.

  Args:
    directory: the folder of the shards; it may hold nothing else.
    pairs: the settings of the pairs.
    max_gigabytes: the limit of disk space, in 10^9 bytes; 0 for no limit.
    draw: makes pairs from their numbers.
    draw_size: the number of pairs drawn at once; 0 for a whole shard. The last
      draw of a shard may be smaller.
    noise: draws the noise of pairs (first, count) again, equal to that of
      `draw`; needed if the noise is not stored.
    num_shards: the number of training shards to make, from the first on; 0 for
      all.
  """

  directory: epath.Path
  pairs: PairSet
  max_gigabytes: Annotated[float, Range(0, 10**6)] = 0.0
  draw: Draw
  draw_size: Annotated[int, Range(0, 2**20)] = 0
  noise: DrawNoise | None = None
  num_shards: Annotated[int, Range(0, 10**9)] = 0

  def __post_init__(self):
    check_ranges(self)
    if self.noise is None and not self.pairs.store_noise:
      raise ValueError(
        "store_noise is False, but nothing draws the noise again; pass noise"
      )
    _ = self.capacity

  @property
  def capacity(self) -> int:
    """The number P of training shards that the disk holds at once."""
    return min(self.pairs.capacity(self.max_gigabytes), len(self.train_shards))

  @property
  def train_shards(self) -> range:
    """The S training shards that are to be made."""
    return self.pairs.train_shards[: self.num_shards or None]

  @property
  def first_shards(self) -> list[int]:
    """The shards to make first: the first pool and the held-out shards."""
    return [
      *self.train_shards[: self.capacity],
      *self.pairs.held_out_shards,
    ]

  @property
  def num_pairs(self) -> int:
    """The number of pairs to train on."""
    return len(self.train_shards) * self.pairs.shard_size

  def summary(self) -> str:
    """Describes in one line how many pairs the disk holds, and their size."""
    pairs, shards = self.pairs, len(self.train_shards)
    count = self.capacity * pairs.shard_size + pairs.held_out
    parts = [
      f"{self.num_pairs:,} pairs and {pairs.held_out:,} held out,"
      f" {readable(pairs.num_bytes(count))} on disk"
    ]
    if self.capacity < shards:
      parts.append(f"a rolling pool of {self.capacity} of {shards} shards")
    if pairs.store_noise:
      smaller = dataclasses.replace(pairs, store_noise=False).num_bytes(count)
      parts.append(f"{readable(smaller)} with store_noise=False")
    return "; ".join(parts)

  def claim(self) -> None:
    """Writes the manifest of the directory, or checks that it fits these pairs.

    Raises:
      ValueError: if the directory holds other pairs, or a shard that is cut
        short.
    """
    hosts.on_first(self._claim)

  def _claim(self) -> None:
    manifest = self.directory / MANIFEST
    # Convert the settings to JSON types, where a tuple is a list.
    mine = json.loads(json.dumps(dataclasses.asdict(self.pairs)))
    if manifest.exists():
      self._compare(_read_manifest(manifest), mine)
      for path in self._present().values():
        check_end(path)
    elif self._present():
      raise ValueError(
        f"{self.directory} holds shards but no {MANIFEST}; remove it, and the"
        " pairs are made again, or pass another directory"
      )
    else:
      write_json(manifest, {"format": FORMAT, **mine})
    remove_partial(self.directory)

  def fill(self, say: Say) -> int:
    """Makes the first pool and the held-out pairs; returns how many it made.

    Raises:
      ValueError: see `claim` and `make`.
    """
    self.claim()
    return self.make(self.first_shards, say)

  def make(self, shards: Sequence[int], say: Say) -> int:
    """Makes the shards that are not on disk; returns how many pairs it made.

    Raises:
      ValueError: if the disk is full, or an image is not finite.
    """
    made = 0
    for shard in self.missing(shards):
      numbers = self.pairs.numbers(shard)
      arrays = drawn_arrays(self.pairs, numbers, self.draw, self.draw_size)
      write = functools.partial(write_shard, self._path(shard), arrays)
      hosts.on_first(write)
      made += len(numbers)
      size = readable(self.pairs.num_bytes(len(numbers)))
      say(f"shard {shard} is made: {len(numbers):,} pairs, {size}")
    return made

  def missing(self, shards: Sequence[int]) -> list[int]:
    """Returns the shards that the first process does not find on the disk."""
    present = hosts.on_first(lambda: sorted(self._present()))
    return [shard for shard in shards if shard not in present]

  def keep(self, shards: Sequence[int]) -> None:
    """Removes all training shards except these."""
    # Wait until all processes have read the shards that are about to go.
    hosts.meet()
    hosts.on_first(functools.partial(self._keep, shards))

  def _keep(self, shards: Sequence[int]) -> None:
    for shard, path in self._present().items():
      if shard in self.pairs.train_shards and shard not in shards:
        path.unlink()

  def read(self, shard: int) -> Arrays:
    """Reads "noise" (float16), "image" (uint8), and "label" (int32, if any).

    Raises:
      ValueError: if the shard is damaged, or if noise that is drawn again
        differs from the noise of the images.
    """
    path, numbers = self._path(shard), self.pairs.numbers(shard)
    arrays = read_shard(path, empty_arrays(self.pairs, len(numbers)))
    if not self.pairs.store_noise:
      assert self.noise is not None  # See __post_init__.
      noise = drawn_noise(self.pairs, numbers, self.noise, self.draw_size)
      if checksum(noise) != arrays.pop("noise_checksum"):
        raise ValueError(
          f"the noise of {path} is not the same here as where it was made;"
          f" remove {self.directory}, and the pairs are made again, or pass"
          " store_noise=True"
        )
      arrays["noise"] = noise
    return arrays

  def _path(self, shard: int) -> epath.Path:
    return self.directory / f"{shard:05d}.npz"

  def _present(self) -> dict[int, epath.Path]:
    """Returns the files of the shards on disk, by the numbers of the shards."""
    paths = matching(self.directory, "*.npz")
    return {int(path.stem): path for path in paths if path.stem.isdigit()}

  def _compare(self, theirs: Mapping[str, Any], mine: Mapping[str, Any]):
    for name, value in mine.items():
      if theirs.get(name) != value:
        raise ValueError(
          f"{self.directory} holds pairs whose {name} is"
          f" {theirs.get(name)!r}, not {value!r}; pass that {name} or another"
          " directory, or remove this one and the pairs are made again"
        )


def _read_manifest(path: epath.Path) -> dict[str, Any]:
  try:
    manifest = read_json(path)
  except ValueError as error:
    raise ValueError(
      f"{error}; remove its directory and the pairs are made again"
    ) from error
  written = manifest.pop("format", None)
  if written != FORMAT:
    raise ValueError(
      f"{path} is of format {written}, not {FORMAT}; remove its directory and"
      " the pairs are made again, or pass another directory"
    )
  return manifest

"""(noise, teacher's image) pairs on disk, made as they are needed.

A teacher that samples without randomness is a function of its noise. Pairs of
the two are made once and trained on many times (Luhman & Luhman 2021). Pair i
depends on (seed, i) only, so a shard that is missing is made again, and a run
that was killed makes at most one shard twice.

Pairs 0 to num_pairs - 1 are trained on and lie in shards 0 to S - 1; the
held-out pairs come after them, in shards of their own. Where they do not all
fit on the disk, it holds a pool of P < S training shards at a time, which
`pair_pipeline` moves over all S.
"""

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float16, Int, UInt8

from diffdistill.data.shards import (
  Arrays,
  check_end,
  read_shard,
  readable,
  remove_partial,
  write_shard,
)
from diffdistill.system import hosts
from diffdistill.system.files import matching, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"

Noise = Float[np.ndarray, "n h w c"]
# Pairs first, ..., first + count - 1: unit noise in float32, rounded to float16
# before the teacher saw it; the teacher's images, in [-1, 1] but for what is
# to be clipped; their labels, None where there are none.
Drawn = tuple[Noise, Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"] | None]
Draw = Callable[[int, int], Drawn]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
  """What the pairs are: all that a directory of them must agree with.

  Args:
    teacher: a fingerprint of its weights.
    sampler: a description of its sampler, which must not read its key.
    num_steps: of that sampler.
    seed: of the noise.
    image_shape: (h, w, c).
    num_classes: 0 where pairs have no labels.
    labels: how their labels were chosen; empty where they have none.
    num_pairs: to train on, all different; a multiple of shard_size.
    held_out: pairs that are never trained on.
    shard_size: pairs per file; the last held-out file may have fewer.
    store_noise: whether the noise is stored, 2 of 3 bytes of a pair, or drawn
      again when a shard is read.
  """

  teacher: str
  sampler: str
  num_steps: int
  seed: int
  image_shape: tuple[int, int, int]
  num_classes: int = 0
  labels: str = ""
  num_pairs: int
  held_out: int = 0
  shard_size: int
  store_noise: bool = True

  def __post_init__(self):
    for name in ("num_steps", "num_pairs", "shard_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; pass 1 or more")
    for name in ("seed", "num_classes", "held_out"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} is {getattr(self, name)}; pass 0 or more")
    if self.num_pairs % self.shard_size:
      raise ValueError(
        f"num_pairs is {self.num_pairs}, which shard_size {self.shard_size}"
        " does not divide; pass a multiple of it"
      )

  @property
  def train_shards(self) -> range:
    """Shards 0 to S - 1."""
    return range(self.num_pairs // self.shard_size)

  @property
  def held_out_shards(self) -> range:
    """The shards after them."""
    first = len(self.train_shards)
    return range(first, first + math.ceil(self.held_out / self.shard_size))

  def numbers(self, shard: int) -> range:
    """The pairs of a shard."""
    first = shard * self.shard_size
    last = min(first + self.shard_size, self.num_pairs + self.held_out)
    return range(first, last)

  def num_bytes(self, num_pairs: int) -> int:
    """What so many pairs take on disk, but for a kilobyte per shard."""
    per_value = 3 if self.store_noise else 1
    label = 4 if self.num_classes else 0
    return num_pairs * (per_value * math.prod(self.image_shape) + label)

  def capacity(self, max_gigabytes: float) -> int:
    """How many training shards fit on disk beside the held-out pairs.

    Args:
      max_gigabytes: of 10^9 bytes; 0 for no limit.

    Raises:
      ValueError: where not one does.
    """
    shards = len(self.train_shards)
    if not max_gigabytes:
      return shards
    shard, held_out = map(self.num_bytes, (self.shard_size, self.held_out))
    room = round(max_gigabytes * 1e9) - held_out
    if room < shard:
      raise ValueError(
        f"max_gigabytes is {max_gigabytes}, but one shard and the held-out"
        f" pairs take {readable(shard + held_out)}; pass more, or a smaller"
        " shard_size or held_out, or store_noise=False"
      )
    return min(room // shard, shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairStore:
  """A directory of pairs.

  Every process of a run makes the same calls in the same order: shards are
  drawn by all together, written and removed by the first, and read by each.

  Args:
    directory: of the shards; nothing else may be in it.
    pairs: what they are.
    max_gigabytes: that they may take on disk (10^9 bytes); 0 for no limit.
    draw: makes pairs by number.
    draw_size: how many at once, the last of a shard may be fewer; 0 for a
      whole shard.
    noise: draws the noise of pairs (first, count) again, as `draw` returned
      it; needed where it is not stored.
    num_shards: of those to train on, the first so many are all that there will
      be; 0 for all of them.
  """

  directory: epath.Path
  pairs: PairSet
  max_gigabytes: float = 0.0
  draw: Draw
  draw_size: int = 0
  noise: Callable[[int, int], Noise] | None = None
  num_shards: int = 0

  def __post_init__(self):
    for name in ("max_gigabytes", "draw_size", "num_shards"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} is {getattr(self, name)}; pass 0 or more")
    if self.noise is None and not self.pairs.store_noise:
      raise ValueError(
        "store_noise is False, but nothing draws the noise again; pass noise"
      )
    _ = self.capacity

  @property
  def capacity(self) -> int:
    """P: training shards on disk at once, besides the held-out ones."""
    return min(self.pairs.capacity(self.max_gigabytes), len(self.train_shards))

  @property
  def train_shards(self) -> range:
    """S, where not all that there could be are made."""
    return self.pairs.train_shards[: self.num_shards or None]

  @property
  def first_shards(self) -> list[int]:
    """The first pool and the held-out shards; all there are without a limit."""
    return [
      *self.train_shards[: self.capacity],
      *self.pairs.held_out_shards,
    ]

  @property
  def num_pairs(self) -> int:
    """To train on."""
    return len(self.train_shards) * self.pairs.shard_size

  def summary(self) -> str:
    """What there will be on disk, in one line."""
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
    """Makes the directory one of these pairs, or checks that it is.

    Raises:
      ValueError: where it holds other pairs, or a shard that is cut short.
    """
    hosts.on_first(self._claim)

  def _claim(self) -> None:
    manifest = self.directory / MANIFEST
    # As JSON has it: a tuple is a list.
    mine = json.loads(json.dumps(dataclasses.asdict(self.pairs)))
    if manifest.exists():
      self._compare(_read_manifest(manifest), mine)
      for path in self._present().values():
        check_end(path)
    elif self._present():
      raise ValueError(
        f"{self.directory} holds shards but no {MANIFEST}; remove it and they"
        " are made again, or pass another directory"
      )
    else:
      write_json(manifest, {"format": FORMAT, **mine})
    remove_partial(self.directory)

  def fill(self, say: Say) -> int:
    """Makes the first pool and the held-out pairs; how many were missing.

    What `claim` and `make` raise.
    """
    self.claim()
    return self.make(self.first_shards, say)

  def make(self, shards: Sequence[int], say: Say) -> int:
    """Makes those of the shards that are not on disk; how many pairs.

    Raises:
      ValueError: where the disk is full, or an image is not finite.
    """
    made = 0
    for shard in self.missing(shards):
      numbers = self.pairs.numbers(shard)
      write = functools.partial(
        write_shard, self._path(shard), self._drawn(numbers)
      )
      hosts.on_first(write)
      made += len(numbers)
      size = readable(self.pairs.num_bytes(len(numbers)))
      say(f"shard {shard} is made: {len(numbers):,} pairs, {size}")
    return made

  def missing(self, shards: Sequence[int]) -> list[int]:
    """Those of the shards that are not on disk, as the first process sees."""
    present = hosts.on_first(lambda: sorted(self._present()))
    return [shard for shard in shards if shard not in present]

  def keep(self, shards: Sequence[int]) -> None:
    """Removes every training shard but these."""
    # After all have read what goes.
    hosts.meet()
    hosts.on_first(functools.partial(self._keep, shards))

  def _keep(self, shards: Sequence[int]) -> None:
    for shard, path in self._present().items():
      if shard in self.pairs.train_shards and shard not in shards:
        path.unlink()

  def read(self, shard: int) -> Arrays:
    """ "noise" (float16), "image" (uint8) and, if any, "label" (int32).

    Raises:
      ValueError: where the shard is damaged, or its noise comes out otherwise
        than it was.
    """
    path, numbers = self._path(shard), self.pairs.numbers(shard)
    arrays = read_shard(path, self._empty(len(numbers)))
    if not self.pairs.store_noise:
      noise = self._noise_again(numbers)
      if _checksum(noise) != arrays.pop("noise_checksum"):
        raise ValueError(
          f"the noise of {path} comes out otherwise here than where it was"
          f" made; remove {self.directory} and the pairs are made again, or"
          " pass store_noise=True"
        )
      arrays["noise"] = noise
    return arrays

  def _path(self, shard: int) -> epath.Path:
    return self.directory / f"{shard:05d}.npz"

  def _present(self) -> dict[int, epath.Path]:
    """The shards on disk."""
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

  def _parts(self, numbers: range) -> Iterator[tuple[slice, int, int]]:
    """(rows, first, count) of what is drawn at once."""
    size = self.draw_size or len(numbers)
    for first in numbers[::size]:
      count = min(size, numbers.stop - first)
      start = first - numbers.start
      yield slice(start, start + count), first, count

  def _empty(self, count: int) -> Arrays:
    """The arrays of a shard of so many pairs."""
    shape = (count, *self.pairs.image_shape)
    arrays: Arrays = {"image": np.empty(shape, np.uint8)}
    if self.pairs.store_noise:
      arrays["noise"] = np.empty(shape, np.float16)
    else:
      arrays["noise_checksum"] = np.zeros((), np.uint32)
    if self.pairs.num_classes:
      arrays["label"] = np.empty(count, np.int32)
    return arrays

  def _drawn(self, numbers: range) -> Arrays:
    arrays = self._empty(len(numbers))
    noise = np.empty(arrays["image"].shape, np.float16)
    for rows, first, count in self._parts(numbers):
      drawn, image, label = self.draw(first, count)
      noise[rows] = _half(drawn)
      arrays["image"][rows] = _to_bytes(image, self.pairs.teacher)
      if self.pairs.num_classes:
        arrays["label"][rows] = label
    if self.pairs.store_noise:
      arrays["noise"] = noise
    else:
      arrays["noise_checksum"] = _checksum(noise)
    return arrays

  def _noise_again(self, numbers: range) -> np.ndarray:
    assert self.noise is not None  # By __post_init__.
    noise = np.empty((len(numbers), *self.pairs.image_shape), np.float16)
    for rows, first, count in self._parts(numbers):
      noise[rows] = _half(self.noise(first, count))
    return noise


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


def _half(noise: Noise) -> Float16[np.ndarray, "n h w c"]:
  """float32 noise as float16, which must hold it exactly."""
  half = noise.astype(np.float16)
  if not np.array_equal(half.astype(np.float32), noise):
    raise ValueError(
      "the noise is not what float16 holds; round it to float16 before the"
      " teacher sees it"
    )
  return half


def _checksum(noise: Float16[np.ndarray, "n h w c"]) -> np.ndarray:
  return np.array(zlib.crc32(noise.tobytes()), np.uint32)


def _to_bytes(
  images: Float[np.ndarray, "n h w c"], teacher: str
) -> UInt8[np.ndarray, "n h w c"]:
  """Images in [-1, 1] as bytes, by the rule of `evaluation.quantise`.

  Rounded to nearest, ties to even, and clipped. Unlike the paper, which
  truncates: that darkens images by half a level.
  """
  bad = np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
  if bad:
    raise ValueError(
      f"{bad} of {len(images)} images of the teacher {teacher} hold NaN or"
      " infinity; use another checkpoint, or more steps"
    )
  scaled = (images.astype(np.float64) + 1) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

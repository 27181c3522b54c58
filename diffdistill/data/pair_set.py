"""Describes a set of pairs, and numbers its pairs and shards.

Pairs 0 to num_pairs - 1 are trained on and lie in shards 0 to S - 1. The
held-out pairs come after these, in separate shards.
"""

import dataclasses
import math
from typing import Annotated

from diffdistill.data.shards import readable
from diffdistill.ranges import Classes, Range, Seed, Steps, check_ranges

NumPairs = Annotated[int, Range(1, 10**9)]
ShardSize = Annotated[int, Range(1, 10**7)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
  """The settings that decide all pairs; a directory holds pairs of one set.

  Args:
    teacher: a fingerprint of the teacher's weights.
    sampler: a description of the teacher's sampler, which must be
      deterministic.
    num_steps: the number of steps of the sampler.
    seed: the seed of the noise.
    image_shape: the shape (h, w, c) of the images.
    num_classes: the number of classes of the labels; 0 for pairs without
      labels.
    labels: the rule that chose the labels; empty for pairs without labels.
    num_pairs: the number of pairs to train on; a multiple of shard_size.
    held_out: the number of pairs that are never trained on.
    shard_size: the number of pairs per file; the last held-out file may have
      fewer.
    store_noise: whether the noise is stored, which takes two thirds of the
      bytes of a pair; otherwise it is drawn again when a shard is read.
  """

  teacher: str
  sampler: str
  num_steps: Steps
  seed: Seed
  image_shape: tuple[int, int, int]
  num_classes: Classes = 0
  labels: str = ""
  num_pairs: NumPairs
  held_out: Annotated[int, Range(0, 10**9)] = 0
  shard_size: ShardSize
  store_noise: bool = True

  def __post_init__(self):
    check_ranges(self)
    if self.num_pairs % self.shard_size:
      raise ValueError(
        f"num_pairs is {self.num_pairs}, which shard_size {self.shard_size}"
        " does not divide; pass a multiple of it"
      )

  @property
  def train_shards(self) -> range:
    """The shards to train on: 0 to S - 1."""
    return range(self.num_pairs // self.shard_size)

  @property
  def held_out_shards(self) -> range:
    """The shards of held-out pairs, which follow the training shards."""
    first = len(self.train_shards)
    return range(first, first + math.ceil(self.held_out / self.shard_size))

  def numbers(self, shard: int) -> range:
    """Returns the numbers of the pairs in a shard."""
    first = shard * self.shard_size
    last = min(first + self.shard_size, self.num_pairs + self.held_out)
    return range(first, last)

  def num_bytes(self, num_pairs: int) -> int:
    """Returns the bytes of pairs on disk, without about 1 kB for each shard."""
    per_value = 3 if self.store_noise else 1
    label = 4 if self.num_classes else 0
    return num_pairs * (per_value * math.prod(self.image_shape) + label)

  def capacity(self, max_gigabytes: float) -> int:
    """Returns how many training shards fit on disk beside the held-out pairs.

    Args:
      max_gigabytes: the limit, in 10^9 bytes; 0 for no limit.

    Raises:
      ValueError: if not even one shard fits.
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

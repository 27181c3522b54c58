"""Defines fixtures: pairs whose images show their numbers, and data files."""

import numpy as np
import pytest
from etils import epath

from diffdistill.data.pair_set import PairSet
from diffdistill.data.pairs import PairStore

SHAPE = (2, 2, 1)


class Teacher:
  """A fake teacher; the pixels of its image i are digits of i in base 200."""

  def __init__(self, classes=3):
    self.drawn = []
    self.classes = classes

  def noise(self, first, count):
    """Returns the noise of pairs; that of pair i depends only on i."""
    rows = [
      np.random.default_rng(i).normal(size=SHAPE)
      for i in range(first, first + count)
    ]
    return np.array(rows, np.float16).astype(np.float32)

  def draw(self, first, count):
    self.drawn.append((first, count))
    number = np.arange(first, first + count)
    byte = np.stack([number // 200, number % 200] * 2, axis=1)
    image = (byte.reshape(count, *SHAPE) / 127.5 - 1).astype(np.float32)
    label = (number % 3).astype(np.int32) if self.classes else None
    return self.noise(first, count), image, label


def numbers(batch):
  """Returns the numbers of the pairs of a batch, read from the images."""
  byte = batch["image"].reshape(-1, 4).astype(int)
  return byte[:, 0] * 200 + byte[:, 1]


@pytest.fixture
def make_store(tmp_path):
  """Returns a function that makes a store of 48 + 12 pairs, and its teacher."""

  def make(directory="pairs", **fields):
    teacher = Teacher(fields.get("num_classes", 3))
    own = {"max_gigabytes", "draw", "draw_size", "noise"}
    pairs = PairSet(
      **{
        "teacher": "abc",
        "sampler": "DDIM()",
        "num_steps": 4,
        "seed": 1,
        "image_shape": SHAPE,
        "num_classes": 3,
        "num_pairs": 48,
        "held_out": 12,
        "shard_size": 8,
      }
      | {k: v for k, v in fields.items() if k not in own}
    )
    store = PairStore(
      **{
        "directory": epath.Path(tmp_path / directory),
        "pairs": pairs,
        "draw": teacher.draw,
        "noise": teacher.noise,
      }
      | {k: v for k, v in fields.items() if k in own}
    )
    return store, teacher

  return make


@pytest.fixture
def numbers_of():
  return numbers


@pytest.fixture
def files_of():
  """Returns a function that lists a store's files, including hidden ones."""
  return lambda store: sorted(p.name for p in store.directory.iterdir())


@pytest.fixture
def refused():
  """Returns a function that asserts that a source is refused in one line."""

  def see(source, *words: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as refusal:
      source.check()
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
      assert word in message

  return see


@pytest.fixture
def npz(tmp_path):
  """Returns a function that writes arrays to a file and returns its path."""

  def write(**arrays) -> str:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return str(path)

  return write

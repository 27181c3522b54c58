"""Tests that batches depend on (seed, step), not on the number of processes."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image as PillowImage

from diffdistill.data.folder import Folder
from diffdistill.data.packed import Npz
from diffdistill.data.pipeline import Pipeline, once

SIZE = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbered:
  """A source whose image i is i at the left and 255 - i at the right."""

  size: int = SIZE
  image_shape = (2, 2, 1)
  dtype: type = np.uint8

  @property
  def image_dtype(self):
    return np.dtype(self.dtype)

  def check(self):
    pass

  def __len__(self):
    return self.size

  @property
  def num_classes(self):
    return self.size

  def labels(self):
    return np.arange(self.size, dtype=np.int32)

  def take(self, indices):
    left = np.broadcast_to(indices[:, None, None], (len(indices), 2, 1))
    image = np.concatenate([left, 255 - left], axis=2)[..., None]
    return {
      "image": image.astype(self.dtype),
      "label": indices.astype(np.int32),
    }

  @property
  def label_counts(self):
    return (1,) * self.num_classes

  class_names = ()
  left_out = ()

  def digests(self):
    return {}

  def held_out(self):
    return None


def _pipeline(**fields) -> Pipeline:
  defaults = {"source": Numbered(), "batch_size": 4, "seed": 3}
  return Pipeline(**(defaults | fields))


def _equal(one, other) -> None:
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True)


def _labels(pipeline: Pipeline, steps: range) -> list[int]:
  return [int(i) for step in steps for i in pipeline.batch(step)["label"]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_and_labels_are_as_the_source_stores_them(dtype):
  batch = _pipeline(source=Numbered(dtype=dtype)).batch(0)
  image, label = batch["image"], batch["label"]
  assert (image.shape, image.dtype) == ((4, 2, 2, 1), dtype)
  assert (label.shape, label.dtype) == ((4,), np.int32)
  np.testing.assert_array_equal(image[:, 1, 0, 0], label)
  np.testing.assert_array_equal(image[:, 0, 1, 0], 255 - label)


def test_black_is_minus_one_and_white_is_one_exactly():
  (batch,) = once(Numbered(size=1), 1)
  np.testing.assert_array_equal(batch["image"][0, 0, :, 0], [-1, 1])


def test_a_batch_depends_on_seed_and_step_only():
  pipeline = _pipeline(flip=True)
  backwards = [pipeline.batch(step) for step in (7, 2, 0)]
  for step, batch in zip((7, 2, 0), backwards, strict=True):
    _equal(batch, _pipeline(flip=True).batch(step))
  assert _labels(_pipeline(), range(5)) != _labels(_pipeline(seed=4), range(5))


@pytest.mark.parametrize("count", [2, 4])
def test_rows_of_processes_make_the_same_global_batch(count):
  # Give each process rows that are not consecutive, as on a pod.
  shares = [tuple(range(i, 8, count)) for i in range(count)]
  pipelines = [_pipeline(batch_size=8, flip=True, rows=rows) for rows in shares]
  whole = _pipeline(batch_size=8, flip=True)
  for step in (0, 1, 5):
    parts = [pipeline.batch(step) for pipeline in pipelines]
    assert all(len(part["label"]) == 8 // count for part in parts)
    for rows, part in zip(shares, parts, strict=True):
      batch = whole.batch(step)
      _equal(part, {name: batch[name][list(rows)] for name in batch})


def test_each_epoch_visits_every_image_once_in_its_own_order():
  # The batch size 4 does not divide the 10 images, so some batches have images
  # of two epochs.
  labels = _labels(_pipeline(), range(10))
  epochs = [tuple(labels[i : i + SIZE]) for i in range(0, 40, SIZE)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(SIZE))
  assert len(set(epochs)) == 4


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_may_exceed_the_source(size):
  pipeline = _pipeline(source=Numbered(size=size), batch_size=8)
  labels = _labels(pipeline, range(3))
  assert np.bincount(labels).tolist() == [24 // size] * size


def test_about_half_of_the_images_are_flipped():
  pipeline = _pipeline(source=Numbered(size=100), batch_size=500, flip=True)
  flip = pipeline.batch(0)["flip"]
  assert (flip.shape, flip.dtype) == ((500,), np.bool_)
  # The tolerance is four standard deviations of 500 fair coins.
  assert abs(flip.mean() - 0.5) < 4 * 0.5 / 500**0.5
  again = pipeline.batch(1)["flip"]
  other = dataclasses.replace(pipeline, seed=4).batch(0)["flip"]
  # Flips of other steps and seeds must be independent, so about half of them
  # agree.
  for drawn in (again, other):
    assert abs((flip == drawn).mean() - 0.5) < 4 * 0.5 / 500**0.5


def test_flips_do_not_change_order_or_images():
  for step in range(5):
    flipped = _pipeline(flip=True).batch(step)
    assert flipped.pop("flip").any() or step
    _equal(flipped, _pipeline().batch(step))


def test_labels_may_be_left_out():
  batch = _pipeline(labels=False, flip=True).batch(2)
  whole = _pipeline(flip=True).batch(2)
  _equal(batch, {name: whole[name] for name in ("image", "flip")})


def test_a_batch_may_be_changed_by_its_reader():
  source = Npz(path="unused", split="train")
  images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
  vars(source)["_arrays"] = (images, np.arange(10, dtype=np.int32))
  kept = images.copy()
  _pipeline(source=source).batch(0)["image"][:] = 7
  np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize("start", [0, 3, 10**9])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_iterate_gives_the_batches_from_any_start(start, num_threads):
  pipeline = _pipeline(flip=True, num_threads=num_threads)
  batches = itertools.islice(pipeline.iterate(start), 6)
  for step, batch in enumerate(batches, start):
    _equal(batch, pipeline.batch(step))


def test_iterate_does_not_read_the_steps_before(monkeypatch):
  taken = []

  def take(self, indices, take=Numbered.take):
    taken.append(indices)
    return take(self, indices)

  monkeypatch.setattr(Numbered, "take", take)
  next(_pipeline().iterate(10**12))
  # More than one batch may be read, because some are prepared ahead.
  assert 0 < len(taken) < 1000


def test_once_gives_every_image_in_order():
  batches = list(once(Numbered(), 4))
  assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
  labels = np.concatenate([batch["label"] for batch in batches])
  assert labels.tolist() == list(range(SIZE))
  assert batches[2]["image"].shape == (2, 2, 2, 1)
  image = np.concatenate([batch["image"] for batch in batches])
  np.testing.assert_allclose(image[:, 0, 0, 0], labels / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"batch_size": 0}, "batch_size is 0; pass 1 or more"),
    ({"rows": (1, 4)}, r"rows are \(1, 4\); pass some of 0 to 3, or None"),
    ({"rows": ()}, r"rows are \(\); pass some of 0 to 3, or None"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"num_threads": -1}, "num_threads is -1"),
    ({"source": Numbered(size=0)}, "Numbered.* is empty"),
  ],
)
def test_wrong_fields_are_refused_at_construction(fields, words):
  with pytest.raises(ValueError, match=words) as refusal:
    _pipeline(**fields)
  assert "\n" not in str(refusal.value)


def test_wrong_steps_and_unusable_sources_are_refused(tmp_path):
  with pytest.raises(ValueError, match="step is -1; pass 0"):
    _pipeline().batch(-1)
  with pytest.raises(ValueError, match="step is -1; pass 0"):
    _pipeline().iterate(-1)
  with pytest.raises(ValueError, match="batch_size is 0"):
    once(Numbered(), 0)
  with pytest.raises(ValueError, match="is empty"):
    once(Numbered(size=0), 1)
  missing = Folder(path=str(tmp_path / "no"), split="train", image_size=4)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    _pipeline(source=missing)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    once(missing, 4)


def test_a_corrupt_image_is_refused_in_one_line(tmp_path):
  (tmp_path / "x").mkdir()
  PillowImage.new("RGB", (8, 8)).save(tmp_path / "x" / "a.png")
  (tmp_path / "x" / "b.png").write_bytes(b"broken")
  source = Folder(path=str(tmp_path), split="train", image_size=4)
  pipeline = _pipeline(source=source)
  for act in (lambda: pipeline.batch(0), lambda: next(pipeline.iterate(0))):
    with pytest.raises(
      ValueError, match=r"b\.png cannot be decoded"
    ) as refusal:
      act()
    assert "\n" not in str(refusal.value)

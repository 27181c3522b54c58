"""Tests of Tfds with a fake library, because the library is optional."""

import sys
import types

import numpy as np
import pytest

from diffdistill.data.tfds import Tfds

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3))


class _Feature(types.SimpleNamespace):
  pass


class _DataSource:
  """A fake of the object that tfds.data_source returns."""

  def __init__(self, labels=(0, 1, 2, 1, 0), shape=(6, 6, 3)):
    features = {"image": _Feature(shape=shape)}
    if labels is not None:
      features["label"] = _Feature(num_classes=3)
    self.labels = labels
    self.dataset_info = _Feature(features=features)

  def __len__(self):
    return 5

  def __getitems__(self, indices):
    assert all(type(i) is int for i in indices)
    examples = []
    for i in indices:
      example = {"image": PICTURES[i].astype(np.uint8)}
      if self.labels is not None:
        example["label"] = np.int64(self.labels[i])
      examples.append(example)
    return examples


@pytest.fixture
def library(monkeypatch):
  """Installs a fake library whose data_source returns or raises the result."""

  def install(result):
    calls = []

    def data_source(name, *, split, data_dir, download):
      calls.append((name, split, data_dir, download))
      if isinstance(result, Exception):
        raise result
      return result

    module = types.ModuleType("tensorflow_datasets")
    module.data_source = data_source
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return calls

  return install


def _refused(act, *words: str) -> None:
  with pytest.raises(ValueError) as refusal:  # noqa: PT011
    act()
  message = str(refusal.value)
  assert "\n" not in message
  for word in words:
    assert word in message


def test_examples_are_taken_by_index(library):
  calls = library(_DataSource())
  source = Tfds(name="cifar10", split="train[:5]", data_dir="elsewhere")
  source.check()
  assert calls == [("cifar10", "train[:5]", "elsewhere", False)]
  assert (len(source), source.num_classes) == (5, 3)
  assert source.image_shape == (6, 6, 3)
  taken = source.take(np.array([4, 2]))
  np.testing.assert_array_equal(
    taken["image"], PICTURES[[4, 2]].astype(np.uint8), strict=True
  )
  np.testing.assert_array_equal(
    taken["label"], np.array([0, 2], np.int32), strict=True
  )


def test_labels_are_counted_example_by_example(library, monkeypatch):
  monkeypatch.setattr("diffdistill.data.tfds.LABELS_AT_A_TIME", 2)
  library(_DataSource(labels=(0, 1, 1, 1, 0)))
  assert Tfds(name="cifar10", split="train").label_counts == (2, 3, 0)
  library(_DataSource(labels=None))
  assert Tfds(name="lsun/bedroom", split="train").label_counts == (5,)
  library(_DataSource(labels=(0, 1, -1, 1, 0)))
  source = Tfds(name="cifar10", split="train")
  _refused(lambda: source.label_counts, "example 2", "label -1")


def test_images_are_resized(library):
  library(_DataSource(shape=(None, None, 3)))
  source = Tfds(name="imagenet2012", split="train", image_size=2)
  assert source.image_shape == (2, 2, 3)
  blocks = PICTURES[1].reshape(2, 3, 2, 3, 3).mean(axis=(1, 3))
  image = source.take(np.array([1]))["image"]
  np.testing.assert_allclose(image[0], blocks, rtol=1e-5)


def test_images_of_several_shapes_need_a_size(library):
  library(_DataSource(shape=(None, None, 3)))
  source = Tfds(name="imagenet2012", split="train")
  _refused(source.check, "imagenet2012", "pass image_size")


def test_images_without_labels_have_one_class(library):
  library(_DataSource(labels=None))
  source = Tfds(name="lsun/bedroom", split="train")
  assert source.num_classes == 1
  assert source.take(np.arange(3))["label"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(library, label):
  library(_DataSource(labels=(0, 1, label, 1, 0)))
  source = Tfds(name="cifar10", split="train")
  source.take(np.array([0, 1]))
  _refused(
    lambda: source.take(np.array([1, 2])), "example 2", f"label {label}", "3"
  )


def test_a_data_set_without_images_is_refused(library):
  data = _DataSource()
  del data.dataset_info.features["image"]
  library(data)
  source = Tfds(name="imdb_reviews", split="train")
  _refused(source.check, "imdb_reviews", "hold label but no image")


@pytest.mark.parametrize(
  "error",
  [
    NotImplementedError("No random access for FileFormat.TFRECORD.\nPlease,"),
    AssertionError("Dataset cifar10:\ncould not find data in x"),
  ],
)
def test_a_data_set_that_is_not_prepared_is_refused(library, error):
  library(error)
  source = Tfds(name="cifar10", split="train", data_dir="there")
  _refused(
    source.check,
    str(error).split("\n")[0],
    "tfds.builder('cifar10', file_format=\"array_record\", data_dir='there')",
    "builder.download_and_prepare()",
  )


def test_a_missing_library_is_refused_with_its_install_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  source = Tfds(name="cifar10", split="train")
  _refused(source.check, "cifar10", "pip install '.[tfds]'")

"""Reads TensorFlow Datasets without TensorFlow."""

import dataclasses
import functools
import importlib
from typing import Any

import numpy as np

from diffdistill.data.sources import Labels, Source
from diffdistill.data.streamed import Decoded, Streamed, one_line
from diffdistill.ranges import Channels
from diffdistill.system import hosts
from diffdistill.system.extras import installing
from diffdistill.system.files import digest_of

LABELS_AT_A_TIME = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Streamed):
  """A TensorFlow Datasets data set in array_record format, without TensorFlow.

  Each example needs an "image"; examples without a "label" have class 0.
  Nothing is downloaded, because every process of a run would download it.

  Args:
    name: the name of the data set in TensorFlow Datasets, such as "cifar10" or
      "imagenet2012:5.*.*".
    split: a split of the data set or a slice, such as "validation" or
      "train[:300]".
    data_dir: the folder where the data set was prepared; None for the default
      of the library.
    channels: the number of channels of the images. With it, a run can be built
      on a machine without the data; see `classes`.

  `check()` raises ValueError if the library is not installed, the data set was
  not prepared in this format, or images vary in shape and image_size is None.
  """

  name: str
  data_dir: str | None = None
  channels: Channels | None = None

  def check(self) -> None:
    """Opens the data set; no example is read."""
    found = self._features["image"].shape[-1]
    if self.channels not in (None, found):
      raise ValueError(
        f"channels is {self.channels}, but images of {self.name} have {found};"
        f" pass {found}"
      )
    self._check_classes()
    _ = self.image_shape

  def __len__(self) -> int:
    return len(self._source)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    if self.image_size is not None and self.channels is not None:
      return self.image_size, self.image_size, self.channels
    shape = self._features["image"].shape
    if self.image_size is not None:
      shape = (self.image_size, self.image_size, shape[-1])
    if None in shape:
      raise ValueError(
        f"images of {self.name} have no fixed shape ({shape}); pass"
        " image_size, such as 64"
      )
    height, width, channels = shape
    return height, width, channels

  def _count_classes(self) -> int:
    features = self._features
    return features["label"].num_classes if "label" in features else 1

  @property
  def class_names(self) -> tuple[str, ...]:
    """The class names of the data set."""
    label = self._features.get("label")
    return tuple(getattr(label, "names", None) or ())

  @property
  def left_out(self) -> tuple[str, ...]:
    """No phrases, because the whole data set is read."""
    return ()

  def digests(self) -> dict[str, str]:
    """Returns a digest of the data set's description; reads no example."""
    info = self._source.dataset_info
    told = {
      "name": getattr(info, "full_name", self.name),
      "split": self.split,
      "examples": len(self),
    }
    return {"name, version, split and number of examples": digest_of(told)}

  def labels(self) -> Labels:
    """Returns the label of every image; the first call reads all examples."""
    return self._labels

  @functools.cached_property
  def _labels(self) -> Labels:
    if "label" not in self._features:
      return np.zeros(len(self), np.int32)
    # Read every example, because the library stores labels only in examples.
    return np.array(hosts.on_first(self._every_label), np.int32)

  def _every_label(self) -> list[int]:
    labels: list[int] = []
    size = len(self)
    for first in range(0, size, LABELS_AT_A_TIME):
      numbers = range(first, min(first + LABELS_AT_A_TIME, size))
      found = list(self._threads.map(self._label, numbers))
      self._check_labels(numbers, found)
      labels += found
    return labels

  def held_out(self) -> Source | None:
    """Returns the split "test", or "validation" if "test" has no labels."""
    for split in ("test", "validation"):
      other = dataclasses.replace(self, split=split)
      try:
        other.take(np.zeros(1, np.int64))
      except ValueError:
        continue
      return other
    return None

  @property
  def _features(self) -> Any:
    features = self._source.dataset_info.features
    if "image" not in features:
      raise ValueError(
        f"examples of {self.name} hold {', '.join(features)} but no image;"
        " pass the name of a data set of images"
      )
    return features

  @functools.cached_property
  def _source(self) -> Any:
    try:
      # Import the library here, because it is optional and its import takes
      # seconds.
      tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
      raise ValueError(
        f"{self.name} needs tensorflow-datasets, which is not installed;"
        f" {installing('tfds')}"
      ) from error
    try:
      return tfds.data_source(
        self.name, split=self.split, data_dir=self.data_dir, download=False
      )
    # Catch all errors: the library raises NotImplementedError for a data set in
    # TFRecord format, AssertionError for an unprepared one, and ValueError for
    # an unknown split.
    except Exception as error:
      where = "" if self.data_dir is None else f", data_dir={self.data_dir!r}"
      raise ValueError(
        f"cannot open split {self.split} of {self.name} as array_record"
        f" ({one_line(error)}); prepare it once with: builder ="
        f' tfds.builder({self.name!r}, file_format="array_record"{where});'
        " builder.download_and_prepare()"
      ) from error

  def _decode(self, index: int) -> Decoded:
    example = self._example(index)
    return np.asarray(example["image"]), int(example.get("label", 0))

  def _label(self, index: int) -> int:
    return int(self._example(index)["label"])

  def _example(self, index: int) -> Any:
    # Use __getitems__, because in some versions source[index] logs an error.
    (example,) = self._source.__getitems__([index])
    return example

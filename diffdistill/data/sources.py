"""Defines the protocol of a source of images, and sources that fit in memory.

Fields are checked at construction. Data is read on first use, so a config can
be built on a machine without its data. `check()` reads enough to know that the
data is usable; `Pipeline` and `once` call it first.
"""

import abc
import dataclasses
import functools
import gzip
import hashlib
import importlib
import math
import zlib

import numpy as np
from etils import epath
from jaxtyping import Int, Shaped

# Do not use typing.Protocol. Before Python 3.12, isinstance evaluates its
# properties, and the properties of a source read files.
from typing_extensions import Protocol, runtime_checkable

from diffdistill.data.resize import check_fit, fit
from diffdistill.ranges import Side, check_ranges

Indices = Int[np.ndarray, " n"]
Images = Shaped[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]
# A batch of examples: "image" has shape `n h w c`, type uint8 or float32, and
# values in [0, 255]; "label" has shape `n`, type int32, and values in [0,
# num_classes).
Examples = dict[str, np.ndarray]
DIGESTED_AT_A_TIME = 4096


@runtime_checkable
class Source(Protocol):
  """Gives random access to the labelled images of one split."""

  def check(self) -> None:
    """Raises ValueError or FileNotFoundError if the data is unusable."""

  def __len__(self) -> int: ...

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """The shape (h, w, c) of each image."""
    ...

  @property
  def image_dtype(self) -> np.dtype:
    """The type of images: uint8 as stored, or float32 if they are resized."""
    ...

  @property
  def num_classes(self) -> int: ...

  @property
  def label_counts(self) -> tuple[int, ...]:
    """The number of images of each class: num_classes numbers."""
    ...

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class; empty if classes have only numbers."""
    ...

  @property
  def left_out(self) -> tuple[str, ...]:
    """Phrases that name the entries beside the images that are not read."""
    ...

  def digests(self) -> dict[str, str]:
    """Returns digests of the data, by what they cover: "sizes of files", ...

    The same data has the same digests on every machine. The keys appear in
    messages.
    """
    ...

  def labels(self) -> Labels:
    """Returns the label of every image, in order."""
    ...

  def take(self, indices: Indices) -> Examples:
    """Returns the images and labels at `indices`, in that order."""
    ...

  def held_out(self) -> "Source | None":
    """Returns the test split of the same data; None if it has no test split."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InMemory(abc.ABC):
  """A source that holds all its images in memory, and resizes in `take`.

  Args:
    split: "train" or "test".
    image_size: the side of the square images; None leaves images unchanged.
    resize: "area" or "bilinear" (antialiased).
    crop: "center" (the centre square) or "none" (stretch).
  """

  split: str
  image_size: Side | None = None
  resize: str = "area"
  crop: str = "center"

  def __post_init__(self):
    if self.split not in ("train", "test"):
      raise ValueError(f"split is {self.split!r}; pass 'train' or 'test'")
    check_ranges(self)
    check_fit(self.resize, self.crop)

  def check(self) -> None:
    """Reads the whole data; the docstring of each class names its errors."""
    _ = self._arrays

  def __len__(self) -> int:
    return len(self._arrays[0])

  @property
  def image_shape(self) -> tuple[int, int, int]:
    height, width, channels = self._arrays[0].shape[1:]
    if self.image_size is None:
      return height, width, channels
    return self.image_size, self.image_size, channels

  @property
  def image_dtype(self) -> np.dtype:
    """The type of images: uint8 if they need no resizing, otherwise float32."""
    resized = self._arrays[0].shape[1:] != self.image_shape
    return np.dtype(np.float32 if resized else np.uint8)

  @property
  def num_classes(self) -> int:
    """One more than the largest label of this split."""
    return int(self._arrays[1].max(initial=-1)) + 1

  @property
  def label_counts(self) -> tuple[int, ...]:
    """The number of images of each class; 0 for a class without images."""
    labels = self._arrays[1]
    return tuple(np.bincount(labels, minlength=self.num_classes).tolist())

  def labels(self) -> Labels:
    """Returns the label of every image, in order."""
    return self._arrays[1]

  @property
  def class_names(self) -> tuple[str, ...]:
    """No names, because the classes of arrays have only numbers."""
    return ()

  @property
  def left_out(self) -> tuple[str, ...]:
    """No phrases, because arrays are read whole."""
    return ()

  def digests(self) -> dict[str, str]:
    """Returns one digest of all bytes of the images and labels."""
    images, labels = self._arrays
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    for first in range(0, len(images), DIGESTED_AT_A_TIME):
      part = images[first : first + DIGESTED_AT_A_TIME]
      digest.update(np.ascontiguousarray(part).data)
    digest.update(np.ascontiguousarray(labels).data)
    return {"images and labels": digest.hexdigest()[:16]}

  def take(self, indices: Indices) -> Examples:
    """Returns the images and labels at `indices`, in that order."""
    images, labels = self._arrays
    taken = images[indices]
    if self.image_dtype != np.uint8:
      size, resize, crop = self.image_size, self.resize, self.crop
      out = np.empty((len(taken), *self.image_shape), np.float32)
      for i, image in enumerate(taken):
        out[i] = fit(image, size, resize, crop)
      taken = out
    return {"image": taken, "label": labels[indices]}

  def held_out(self) -> Source | None:
    return dataclasses.replace(self, split="test")

  @functools.cached_property
  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    return self._read()

  @abc.abstractmethod
  def _read(self) -> tuple[Images, Labels]:
    """Reads all images (uint8) and all labels (int32)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(InMemory):
  """The 1797 handwritten digits of scikit-learn, 8x8 grey, without a download.

  The set has no official split: every sixth image (300 in all) is a test image.
  """

  def _read(self) -> tuple[Images, Labels]:
    try:
      # Import scikit-learn here, because its import is slow and only digits
      # need it.
      datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
      raise ValueError(
        "the digits are part of scikit-learn, which is not installed; run"
        " `pip install scikit-learn`"
      ) from error
    digits = datasets.load_digits()
    # Pixels of the scan have 17 levels, 0 to 16.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(images)) % 6 == 0
    chosen = test if self.split == "test" else ~test
    return images[chosen], digits.target[chosen].astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idx(InMemory):
  """Files in the format of MNIST and Fashion-MNIST, plain or gzipped.

  Args:
    path: the folder of train-images-idx3-ubyte[.gz] and the three other files.

  `check()` raises FileNotFoundError if a file is missing, and ValueError if a
  file is cut short or has another format.
  """

  path: str

  def _read(self) -> tuple[Images, Labels]:
    stem = {"train": "train", "test": "t10k"}[self.split]
    images = self._array(f"{stem}-images-idx3-ubyte", 3)
    labels = self._array(f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
      raise ValueError(
        f"{self.path} holds {len(images)} {self.split} images and"
        f" {len(labels)} labels; download the files again"
      )
    return images[..., None], labels.astype(np.int32)

  def _array(self, name: str, rank: int) -> np.ndarray:
    """Parses a file: bytes 0, 0, type, rank; big-endian sizes; the data."""
    file = self._find(name)
    data = file.read_bytes()
    if file.suffix == ".gz":
      try:
        data = gzip.decompress(data)
      except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
          f"{file} is not a complete gzip file; download it again"
        ) from error
    start = 4 + 4 * rank
    # Compare with 8, which is the format's code of unsigned bytes.
    if len(data) < start or data[:4] != bytes((0, 0, 8, rank)):
      raise ValueError(
        f"{file} is not an IDX file of bytes in {rank} dimensions: it starts"
        f" with {data[:4].hex() or 'nothing'}; download it again"
      )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    if len(data) - start != math.prod(shape):
      raise ValueError(
        f"{file} holds {len(data) - start} bytes after its header, which"
        f" announces {math.prod(shape)}; download it again"
      )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)

  def _find(self, name: str) -> epath.Path:
    plain = epath.Path(self.path) / name
    for file in (plain, plain.parent / f"{name}.gz"):
      if file.exists():
        return file
    raise FileNotFoundError(
      f"{plain}[.gz] does not exist; pass the folder of the MNIST or"
      " Fashion-MNIST files (Debian: `apt install dataset-fashion-mnist`, then"
      " path=/usr/share/datasets/fashion-mnist)"
    )

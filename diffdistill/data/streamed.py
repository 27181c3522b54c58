"""Sources too large for memory: each image is decoded when it is taken."""

import abc
import dataclasses
import functools
import io
from collections.abc import Sequence
from concurrent import futures

import numpy as np
from etils import epath
from jaxtyping import Shaped
from PIL import Image as PillowImage

from diffdistill.data.resize import check_fit, fit
from diffdistill.data.sources import Examples, Indices, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

Decoded = tuple[Shaped[np.ndarray, "h w c"], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed(abc.ABC):
  """A source that decodes on a few threads of its own.

  Args:
    split: the name of the split.
    image_size: of the square images taken; None leaves them as they are.
    resize: "area" or "bilinear" (antialiased).
    crop: "center" (the centre square) or "none" (stretch).
    num_threads: that decode at the same time.
    classes: how many there are, so that a run can be built where the data is
      not; `check()` compares. None asks the data.
  """

  split: str
  image_size: int | None = None
  resize: str = "area"
  crop: str = "center"
  num_threads: int = 8
  classes: int | None = None

  def __post_init__(self):
    if not self.split:
      raise ValueError("split is empty; pass 'train' or 'test'")
    if self.classes is not None and self.classes < 1:
      raise ValueError(f"classes is {self.classes}; pass 1 or more")
    if self.num_threads < 1:
      raise ValueError(f"num_threads is {self.num_threads}; pass 1 or more")
    check_fit(self.image_size, self.resize, self.crop)

  def take(self, indices: Indices) -> Examples:
    """The images and labels at `indices`, in that order.

    Raises:
      ValueError: an image that cannot be decoded, or a label outside
        [0, num_classes).
    """
    decoded = list(self._threads.map(self._fitted, indices.tolist()))
    if not decoded:
      return {
        "image": np.empty((0, *self.image_shape), self.image_dtype),
        "label": np.empty(0, np.int32),
      }
    images, labels = zip(*decoded, strict=True)
    self._check_labels(indices.tolist(), labels)
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}

  def _check_labels(
    self, indices: Sequence[int], labels: Sequence[int]
  ) -> None:
    for index, label in zip(indices, labels, strict=True):
      if not 0 <= label < self.num_classes:
        raise ValueError(
          f"example {index} of {self} has label {label}; number the"
          f" {self.num_classes} classes from 0"
        )

  @property
  def image_dtype(self) -> np.dtype:
    """As `fit` gives them: of one type, whichever of them are resized."""
    return np.dtype(np.uint8 if self.image_size is None else np.float32)

  @property
  def num_classes(self) -> int:
    return self._count_classes() if self.classes is None else self.classes

  @functools.cached_property
  def label_counts(self) -> tuple[int, ...]:
    """The number of images of each class."""
    return self._count_labels()

  def _check_classes(self) -> None:
    found = self._count_classes()
    if self.classes not in (None, found):
      raise ValueError(
        f"classes is {self.classes}, but the data has {found}; pass that"
      )

  @abc.abstractmethod
  def _count_classes(self) -> int:
    """As the data has them."""

  @abc.abstractmethod
  def _count_labels(self) -> tuple[int, ...]:
    """The number of images of each class, num_classes numbers."""

  @property
  @abc.abstractmethod
  def image_shape(self) -> tuple[int, int, int]: ...

  @abc.abstractmethod
  def _decode(self, index: int) -> Decoded:
    """The stored image, in [0, 255], and its label."""

  def _fitted(self, index: int) -> Decoded:
    image, label = self._decode(index)
    return fit(image, self.image_size, self.resize, self.crop), label

  @functools.cached_property
  def _threads(self) -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(
      self.num_threads, thread_name_prefix="decode"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Streamed):
  """Images in one folder per class; the sorted class names are labels 0, 1...

  Classes are the folders in path/split where that exists, else in path itself
  (then every split is the same images). Images are the png, jpg, jpeg and webp
  files directly in them. Transparency is dropped.

  Args:
    path: of the folder.
    channels: 3 for RGB, 1 for grey.

  Errors, from `check()` on: FileNotFoundError for a missing folder, ValueError
  where there is no class folder or one has no image. A corrupt image is found
  when it is taken: ValueError.
  """

  path: str
  channels: int = 3

  def __post_init__(self):
    super().__post_init__()
    if self.image_size is None:
      raise ValueError(
        "image_size is not given; pass the side of the square images to train"
        " on, such as 64"
      )
    if self.channels not in (1, 3):
      raise ValueError(
        f"channels is {self.channels}; pass 3 for RGB or 1 for grey"
      )

  def check(self) -> None:
    """Lists every class; no image is opened."""
    self._check_classes()

  def __len__(self) -> int:
    return len(self._listing[1])

  @property
  def image_shape(self) -> tuple[int, int, int]:
    assert self.image_size is not None  # By __post_init__.
    return self.image_size, self.image_size, self.channels

  def _count_classes(self) -> int:
    return len(self._listing[0])

  def _count_labels(self) -> tuple[int, ...]:
    labels = [label for _, label in self._listing[1]]
    return tuple(np.bincount(labels, minlength=self.num_classes).tolist())

  def held_out(self) -> Source | None:
    test = epath.Path(self.path) / "test"
    if not test.is_dir():
      return None
    other = dataclasses.replace(self, split="test")
    # Labels are numbered by the class names: other names, other labels.
    return other if other.class_names == self.class_names else None

  @property
  def class_names(self) -> tuple[str, ...]:
    """The folder of each label."""
    return tuple(folder.name for folder in self._listing[0])

  @property
  def left_out(self) -> tuple[str, ...]:
    return ()

  def digests(self) -> dict[str, str]:
    return {}

  @functools.cached_property
  def _listing(
    self,
  ) -> tuple[list[epath.Path], list[tuple[epath.Path, int]]]:
    root = epath.Path(self.path)
    if not root.exists():
      raise FileNotFoundError(
        f"{root} does not exist; pass a folder with one folder per class"
      )
    if (root / self.split).is_dir():
      root = root / self.split
    folders = sorted(
      entry
      for entry in root.iterdir()
      if not entry.name.startswith(".") and entry.is_dir()
    )
    if not folders:
      raise ValueError(
        f"{root} has no class folder; put its images into one folder per"
        " class, such as all/ where there are no classes"
      )
    images = []
    for label, folder in enumerate(folders):
      inside = sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.suffix.lower() in SUFFIXES
      )
      if not inside:
        raise ValueError(
          f"class folder {folder} has no image; put {', '.join(SUFFIXES)}"
          " files into it or remove it"
        )
      images.extend((entry, label) for entry in inside)
    return folders, images

  def _decode(self, index: int) -> Decoded:
    path, label = self._listing[1][index]
    try:
      with PillowImage.open(io.BytesIO(path.read_bytes())) as opened:
        mode = opened.mode
        image = np.asarray(opened.convert("RGB" if self.channels == 3 else "L"))
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more,
    # by format and by where the damage is.
    except Exception as error:
      raise ValueError(
        f"{path} cannot be decoded ({one_line(error)}); replace or remove it"
      ) from error
    if mode.startswith(("I", "F")):
      # Pillow would clip such values to white rather than scale them.
      raise ValueError(
        f"{path} has more than 8 bits a channel (mode {mode}); convert it to 8"
      )
    return image.reshape(*image.shape[:2], self.channels), label


def one_line(error: Exception) -> str:
  """What the error says, or its class where it says nothing."""
  return " ".join(str(error).split()) or type(error).__name__

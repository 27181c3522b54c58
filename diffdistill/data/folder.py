"""Reads a folder of pictures that has one folder per class."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from etils import epath

from diffdistill.data.listing import Listing, list_images
from diffdistill.data.pictures import colour, decode, measure
from diffdistill.data.sources import Labels, Source
from diffdistill.data.streamed import Decoded, Streamed, one_line
from diffdistill.ranges import Channels
from diffdistill.system import hosts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Streamed):
  """Images in one folder per class; the sorted class names are labels 0, 1...

  Classes are the folders in path/split if it exists, otherwise those in path.
  Images are the files directly in a class folder, in the formats of
  `data/pictures.py`. Images with no class folder beside them are one class,
  "all". Images are rotated according to their EXIF data. Folders of the system,
  such as @eaDir, are not classes. `left_out` names everything that is not read.

  Args:
    path: the folder of the data.
    channels: 3 for RGB, 1 for grey.
    background: the colour behind transparent pixels, as in CSS: "white" or
      "#808080".
    only: the classes to read, in the order of their labels; a class may be
      missing in the folder. If empty, all classes are read, sorted.

  `check()` raises FileNotFoundError if the folder is missing, and ValueError if
  there is no image, a class has no image, or a file is empty or a dead link.
  `take()` raises ValueError if an image cannot be decoded.
  """

  path: str
  channels: Channels = 3
  background: str = "white"
  only: tuple[str, ...] = ()

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
    colour(self.background)
    if len(set(self.only)) < len(self.only):
      raise ValueError(f"only is {self.only}; name each class once")

  def check(self) -> None:
    """Lists every class, but opens no image."""
    self._check_classes()

  def __len__(self) -> int:
    return self._starts[-1]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    assert self.image_size is not None  # See __post_init__.
    return self.image_size, self.image_size, self.channels

  def _count_classes(self) -> int:
    return len(self._listing.names)

  def labels(self) -> Labels:
    """Returns the label of every image, in order, but opens no image."""
    counts = [len(files) for files in self._listing.files]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

  def held_out(self) -> Source | None:
    """Returns the split "test" or "val", with the classes of this split."""
    split = self._listing.held_out
    if not split:
      return None
    return dataclasses.replace(self, split=split, only=self.class_names)

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class folder in Unicode NFC, in the order of labels."""
    return tuple(self._listing.names)

  @property
  def left_out(self) -> tuple[str, ...]:
    """Phrases that name the things in the folder that are not read."""
    return tuple(self._listing.left_out)

  def digests(self) -> dict[str, str]:
    """Returns digests of files' names and sizes; in a bucket, only of names."""
    return dict(self._listing.digests)

  def measured(self, count: int) -> list[tuple[int, bool]]:
    """Measures some images, evenly spaced.

    Returns (shorter side, whether the image is grey) for each image.

    Args:
      count: the largest number of images to measure.

    Raises:
      ValueError: if an image cannot be read.
    """
    places = np.linspace(0, len(self) - 1, min(count, len(self)))
    paths = [self._path(int(index))[0] for index in places]
    return list(self._threads.map(_measured, paths))

  @functools.cached_property
  def _listing(self) -> Listing:
    """The first process's listing. All processes must ask for it together."""
    fields = hosts.on_first(
      lambda: dataclasses.asdict(list_images(self.path, self.split, self.only))
    )
    return Listing(**fields)

  @functools.cached_property
  def _starts(self) -> list[int]:
    """The index of each class's first image, and then the number of images."""
    return list(itertools.accumulate(map(len, self._listing.files), initial=0))

  def _path(self, index: int) -> tuple[epath.Path, int]:
    """Returns the file of an image, and its label."""
    listing = self._listing
    label = int(np.searchsorted(self._starts, index, side="right")) - 1
    name = listing.files[label][index - self._starts[label]]
    folder = listing.folders[label] or ""
    return epath.Path(listing.folder) / folder / name, label

  def _decode(self, index: int) -> Decoded:
    path, label = self._path(index)
    with _naming(path):
      image = decode(path.read_bytes(), self.channels, self.background)
    return image, label


def _measured(path: epath.Path) -> tuple[int, bool]:
  with _naming(path):
    return measure(path.read_bytes())


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
  """Makes an error inside the `with` name the image that cannot be read."""
  try:
    yield
  # Catch all errors, because Pillow's error depends on the format and the
  # damage: OSError, SyntaxError, ValueError, struct.error and more.
  except Exception as error:
    raise ValueError(
      f"{path} cannot be decoded ({one_line(error)}); replace or remove it"
    ) from error

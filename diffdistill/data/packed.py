"""Reads and writes a data set as one .npz archive per split."""

import dataclasses
import errno
import functools
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from diffdistill.data.shards import readable
from diffdistill.data.sources import Examples, Images, InMemory, Labels, Source
from diffdistill.ranges import Channels, SomeClasses
from diffdistill.system import signals
from diffdistill.system.archives import check_unpacked_size
from diffdistill.system.files import naming

SPLIT = "{split}"
# The most classes of an archive with fewer than 10,000 images.
MOST_CLASSES = 100_000
# The number of examples that are read at a time, enough for all decoding
# threads.
CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Npz(InMemory):
  """Images and labels from a NumPy archive, such as `diffdistill pack` makes.

  Args:
    path: the path of the file; "{split}" in it is replaced by the split.
    image_key: the name of the array of images, uint8 of shape `n h w c`.
    label_key: the name of the array of labels, integers from 0 of shape `n`.
    classes, channels: the numbers of classes and channels of a file whose
      images already have image_size. With these, a run can be built on a
      machine without the data; `check()` compares them with the data. If None,
      they are read from the data.

  `check()` raises FileNotFoundError if the file is missing, and ValueError if
  its arrays are missing or have another type or shape.
  """

  path: str
  image_key: str = "image"
  label_key: str = "label"
  classes: SomeClasses | None = None
  channels: Channels | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.channels is not None and self.image_size is None:
      raise ValueError(
        f"channels is {self.channels}, but image_size is not given; pass the"
        " side of the packed images, such as 32"
      )

  def check(self) -> None:
    """Reads the whole file; the docstring of the class names the errors."""
    images, _ = self._arrays
    if self.channels is not None and images.shape[1:] != self.image_shape:
      raise ValueError(
        f"images in {self.path} are of shape {images.shape[1:]}, not"
        f" {self.image_shape}; pass their image_size and channels, or leave"
        " channels out to resize them"
      )
    found = super().num_classes
    if self.classes is not None and found > self.classes:
      raise ValueError(
        f"classes is {self.classes}, but labels in {self.path} go to"
        f" {found - 1}; pass {found} or more"
      )

  @property
  def image_shape(self) -> tuple[int, int, int]:
    if self.image_size is None or self.channels is None:
      return super().image_shape
    return self.image_size, self.image_size, self.channels

  @property
  def image_dtype(self) -> np.dtype:
    return super().image_dtype if self.channels is None else np.dtype(np.uint8)

  @property
  def num_classes(self) -> int:
    return super().num_classes if self.classes is None else self.classes

  def held_out(self) -> Source | None:
    return super().held_out() if SPLIT in self.path else None

  def _read(self) -> tuple[Images, Labels]:
    file = epath.Path(self.path.replace(SPLIT, self.split))
    if not file.exists():
      raise FileNotFoundError(
        f"{file} does not exist; pass the path of an .npz file, such as"
        " diffdistill pack writes"
      )
    if file.is_dir():
      raise ValueError(
        f"{file} is a folder; pass the path of an .npz file, or kind='folder'"
      )
    check_unpacked_size(file)
    try:
      with file.open("rb") as opened:
        archive = np.load(opened, allow_pickle=False)
        # For an .npy file, np.load returns an array and no archive.
        names = () if isinstance(archive, np.ndarray) else archive.files
        found = {
          key: archive[key]
          for key in (self.image_key, self.label_key)
          if key in names
        }
    except MemoryError as error:
      raise ValueError(
        f"{file} takes more memory than there is; pass a smaller one, or"
        " kind='folder', which reads images as they are needed"
      ) from error
    # A damaged archive, or an archive of other things, can raise any error.
    except Exception as error:
      raise ValueError(
        f"{file} is not a readable .npz of plain arrays; write it with"
        f" np.savez(path, {self.image_key}=..., {self.label_key}=...)"
      ) from error
    for key in (self.image_key, self.label_key):
      # If a member of the archive is not an .npy, NumPy returns its bytes.
      if not isinstance(found.get(key), np.ndarray):
        raise ValueError(
          f"{file} holds {', '.join(names) or 'no named array'} but no array"
          f" {key}; pass image_key and label_key"
        )
    images, labels = found[self.image_key], found[self.label_key]
    self._check_arrays(file, images, labels)
    return images, labels.astype(np.int32)

  def _check_arrays(
    self, file: epath.Path, images: np.ndarray, labels: np.ndarray
  ) -> None:
    """Refuses arrays that are not images and labels."""
    if images.dtype != np.uint8 or images.ndim != 4:
      raise ValueError(
        f"{self.image_key} in {file} is {images.dtype} of shape"
        f" {images.shape}; store uint8 of shape (n, h, w, c)"
      )
    if not len(images):
      raise ValueError(f"{file} holds no images; pass a file that does")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
      raise ValueError(
        f"{self.label_key} in {file} is {labels.dtype} of shape"
        f" {labels.shape}; store integers of shape {images.shape[:1]}"
      )
    # Limit the labels, because a network has a row of weights for each number
    # up to the largest label.
    limit = max(10 * len(labels), MOST_CLASSES)
    wrong = labels[(labels < 0) | (labels >= limit)]
    if wrong.size:
      raise ValueError(
        f"{self.label_key} in {file} holds {wrong[0]}; number the classes of"
        f" its {len(labels)} images from 0, to at most {limit - 1}"
      )


def pack(source: Source, out: str, say: Callable[[str], None]) -> list[str]:
  """Writes a source, and its held-out split if it has one, for `Npz`.

  Each file is an uncompressed .npz of "image" (uint8, `n h w c`) and "label"
  (int32, `n`), in the order of the source. Packing again gives the same bytes.
  A file is written under another name, then renamed, so that nobody reads half
  a file. Images that a source resizes are rounded to the nearest byte.

  Args:
    source: the source of the images.
    out: the file to write; "{split}" in it is replaced by train and test.
    say: receives lines about the progress.

  Returns:
    A line about each file.

  Raises:
    ValueError: if `out` has another ending, if it lacks "{split}" and there are
      two splits, if the disk is full, or if the source refuses its data.
  """
  if not out.endswith(".npz"):
    raise ValueError(f"out is {out!r}; pass a name that ends in .npz")
  source.check()
  splits = {"train": source}
  held_out = source.held_out()
  if held_out is not None:
    held_out.check()
    splits["test"] = held_out
  if len(splits) > 1 and SPLIT not in out:
    raise ValueError(
      f"out is {out!r}, but there is a test split too; pass a name with"
      f" {SPLIT} in it, such as {out.removesuffix('.npz')}_{SPLIT}.npz"
    )
  lines = []
  for split, part in splits.items():
    path = epath.Path(out.replace(SPLIT, split))
    replaced = ", replaced" if path.exists() else ""
    with naming(path):
      lines.append(_write(path, split, part, say) + replaced)
  return lines


def _write(
  path: epath.Path, split: str, source: Source, say: Callable[[str], None]
) -> str:
  """Writes one split as an archive; returns a line about the file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f".{path.name}.partial")
  shape = (len(source), *source.image_shape)
  labels = np.empty(len(source), np.int32)
  rounded = False
  try:
    with (
      signals.unfinished(functools.partial(beside.unlink, missing_ok=True)),
      beside.open("wb") as file,
      zipfile.ZipFile(file, "w") as archive,
    ):
      # Write the file as np.savez does, but without all images in memory at
      # once.
      with archive.open("image.npy", "w", force_zip64=True) as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for first, examples in _chunks(source, split, say):
          image = examples["image"]
          if image.dtype != np.uint8:
            image, off = _to_bytes(image)
            rounded |= off
          member.write(np.ascontiguousarray(image).data)
          labels[first : first + len(image)] = examples["label"]
      with archive.open("label.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, labels, allow_pickle=False)
    beside.replace(path)
  except OSError as error:
    beside.unlink(missing_ok=True)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    size = readable(int(np.prod(shape)))
    raise ValueError(
      f"the disk is full: {path} needs {size}; free as much"
    ) from error
  except BaseException:
    beside.unlink(missing_ok=True)
    raise
  height, width, channels = source.image_shape
  line = (
    f"{path}: {len(source):,} {split} images of {height}x{width}x{channels} in"
    f" {source.num_classes} class{'' if source.num_classes == 1 else 'es'},"
    f" {readable(path.stat().length)}"
  )
  return f"{line}, resized and rounded to bytes" if rounded else line


def _chunks(
  source: Source, split: str, say: Callable[[str], None]
) -> Iterator[tuple[int, Examples]]:
  """Yields (first index, examples) of all images; reports each tenth."""
  size = len(source)
  for first in range(0, size, CHUNK):
    last = min(first + CHUNK, size)
    yield first, source.take(np.arange(first, last))
    if last * 10 // size > first * 10 // size:
      say(f"{split}: {last:,} of {size:,} images")


def _to_bytes(
  images: Float[np.ndarray, "n h w c"],
) -> tuple[UInt8[np.ndarray, "n h w c"], bool]:
  """Rounds images in [0, 255] to bytes; also says whether a value changed."""
  whole = np.rint(images)
  return whole.astype(np.uint8), bool((whole != images).any())

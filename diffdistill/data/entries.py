"""Lists a folder of pictures, and names everything in it that is not read."""

import collections
import os
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from diffdistill.data.label_order import abbreviated
from diffdistill.data.pictures import SEVERAL, SUFFIXES, UNREAD
from diffdistill.system.files import in_bucket

# Files and folders that systems and file servers add to a user's folders, by
# their names in lower case. Names that begin with a dot are treated in the
# same way.
SYSTEM = (
  *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle"),
  *("#snapshot", "~snapshot", "__macosx", "__pycache__", "$recycle.bin"),
  *("recycler", "system volume information", "lost+found", "found.000"),
  *("network trash folder", "temporary items", "thumbs.db", "ehthumbs.db"),
  *("desktop.ini", "icon\r"),
)
FOLDER, FILE, DEAD = "folder", "file", "dead link"


class Entry(NamedTuple):
  """An entry of a folder: its name, and what it is."""

  name: str
  kind: str

  @property
  def suffix(self) -> str:
    """The file name's ending, such as ".png", in lower case."""
    return os.path.splitext(self.name)[1].lower()

  @property
  def is_system(self) -> bool:
    return self.name.startswith(".") or self.name.lower() in SYSTEM

  @property
  def is_image(self) -> bool:
    """Whether the entry is a picture of the user, in a format that is read."""
    return self.kind == FILE and self.suffix in SUFFIXES and not self.is_system


def entries(folder: epath.Path) -> list[Entry]:
  """Lists a folder, sorted by name in Unicode NFC."""
  if in_bucket(folder):
    found = [_entry_in_bucket(path) for path in folder.iterdir()]
  else:
    with os.scandir(os.fspath(folder)) as scanned:
      found = [Entry(entry.name, _kind(entry)) for entry in scanned]
  return sorted(found, key=lambda entry: normal(entry.name))


def normal(name: str) -> str:
  """Returns a name in Unicode NFC; macOS and Linux use different forms."""
  return unicodedata.normalize("NFC", name)


def _entry_in_bucket(path: epath.Path) -> Entry:
  # Do not call `is_dir` for images, because it sends a request to the bucket.
  is_file = path.suffix.lower() in SUFFIXES or not path.is_dir()
  return Entry(path.name, FILE if is_file else FOLDER)


def _kind(entry: os.DirEntry[str]) -> str:
  try:
    if entry.is_dir():
      return FOLDER
    if entry.is_file():
      return FILE
  except OSError:
    # A link that points to itself raises OSError.
    return DEAD
  return DEAD if entry.is_symlink() else "no file"


def loose(inside: Sequence[Entry], beside: bool = True) -> list[str]:
  """Returns phrases that name the files of a folder that are not read.

  Args:
    inside: the entries of the folder.
    beside: whether the folder holds class folders; if not, its images are read.
  """
  system = [entry.name for entry in inside if entry.is_system]
  files = [e for e in inside if not e.is_system and e.kind != FOLDER]
  images = [entry.name for entry in files if entry.is_image and beside]
  others = [entry.name for entry in files if not entry.is_image]
  where = "beside the class folders" if beside else "beside the images"
  return [
    *phrase_of(system, "system file or folder", "system files or folders"),
    *phrase_of(
      images,
      "image beside the class folders",
      "images beside the class folders",
    ),
    *phrase_of(others, f"other file {where}", f"other files {where}"),
  ]


def _counted(count: int, what: str) -> str:
  """Writes a count with its noun: 1 image, 2 images."""
  return f"{count:,} {what}{'' if count == 1 else 's'}"


def phrase_of(names: Sequence[str], one: str, several: str) -> list[str]:
  """Returns a phrase that counts and names things; [] if there are none."""
  if not names:
    return []
  what = one if len(names) == 1 else several
  return [f"{len(names):,} {what} ({abbreviated(names, 3)})"]


def left_in_classes(
  root: epath.Path,
  folders: Sequence[str | None],
  inside: Sequence[Sequence[Entry]],
) -> list[str]:
  """Returns phrases that name the things in class folders that are not read."""
  system, nested, unread, others = [], [], [], []
  several: collections.Counter[str] = collections.Counter()
  for folder, found in zip(folders, inside, strict=True):
    for entry in found:
      name = f"{folder}/{entry.name}"
      if entry.is_system:
        system.append(name)
      elif entry.kind == FOLDER:
        nested.append(name)
      elif entry.is_image:
        several[entry.suffix] += entry.suffix in SEVERAL
      elif entry.suffix in UNREAD:
        unread.append(name)
      else:
        others.append(name)
  later = [
    f"of {_counted(n, f'{suffix} file')} every picture after the first"
    for suffix, n in sorted(several.items())
    if n
  ]
  seen = {_real(root), *(_real(root / folder) for folder in folders if folder)}
  images = sum(_images_below(root / name, seen) for name in nested)
  holding = f", with {_counted(images, 'image')}" if images else ""
  return [
    *phrase_of(
      system,
      "system file or folder in a class",
      "system files or folders in classes",
    ),
    *[
      phrase + holding
      for phrase in phrase_of(
        nested, "folder in a class folder", "folders in class folders"
      )
    ],
    *phrase_of(
      unread,
      "picture of a format that is not read",
      "pictures of formats that are not read",
    ),
    *phrase_of(others, "other file in a class", "other files in classes"),
    *later,
  ]


def _images_below(folder: epath.Path, seen: set[str]) -> int:
  """Counts the images in a folder and in all folders below it.

  Args:
    folder: the folder.
    seen: the real paths of the folders that are not entered, because a link may
      lead upwards. The folders that are counted are added.
  """
  real = _real(folder)
  if real in seen:
    return 0
  seen.add(real)
  found = entries(folder)
  return sum(entry.is_image for entry in found) + sum(
    _images_below(folder / entry.name, seen)
    for entry in found
    if entry.kind == FOLDER and not entry.is_system
  )


def _real(folder: epath.Path) -> str:
  """The path of a folder without links."""
  path = os.fspath(folder)
  return path if in_bucket(folder) else os.path.realpath(path)

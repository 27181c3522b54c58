"""Finds the images of each class of a split in a folder."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent import futures

from etils import epath

from diffdistill.data.entries import (
  DEAD,
  FOLDER,
  Entry,
  entries,
  left_in_classes,
  loose,
  normal,
  phrase_of,
)
from diffdistill.data.label_order import abbreviated
from diffdistill.data.pictures import SUFFIXES
from diffdistill.system.files import in_bucket, whole

# The names of each split's folder; the first one that exists is used.
TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")
SPLITS = (*TRAINING, *HELD_OUT)
# The class of all pictures of a folder that has no class folders.
ALONE = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
  """Holds the names and files of one split's images, as plain values.

  Args:
    folder: the folder that holds the class folders.
    names: the names of the classes in Unicode NFC, in the order of their
      labels.
    folders: the folder of each class, as the disk spells it; None for a class
      without a folder; empty for a class whose images lie in `folder` itself.
    files: the files of each class, in order.
    left_out: phrases that name the things in the folder that are not read.
    digests: the digests of the data, by what they cover.
    held_out: the folder of the held-out split; empty if there is none.
  """

  folder: str
  names: list[str]
  folders: list[str | None]
  files: list[list[str]]
  left_out: list[str]
  digests: dict[str, str]
  held_out: str


def list_images(path: str, split: str, only: Sequence[str]) -> Listing:
  """Lists the images of a split, but opens none.

  Classes are the folders in path/split if it has class folders, otherwise those
  in path. A folder with the name of a split is a class if it holds images and
  lies beside other class folders. Images with no class folder beside them are
  one class.

  Args:
    path: the folder of the data.
    split: the name of the split; "train" may be called "training" on the disk.
    only: the classes to read, in the order of their labels; empty for all,
      sorted.

  Raises:
    FileNotFoundError: if the folder does not exist.
    ValueError: if the folder has no image, or a class has no image or a broken
      file.
  """
  data = epath.Path(path)
  if not data.exists():
    raise FileNotFoundError(
      f"{whole(data)} does not exist; pass a folder of pictures as"
      " data.source.path"
    )
  if not data.is_dir():
    raise ValueError(
      f"{whole(data)} is a file; pass a folder of pictures as data.source.path"
    )
  top = [entry for entry in entries(data) if not entry.is_system]
  classes_at_top, splits = _split_folders(data, top)
  wanted = TRAINING if split.casefold() in TRAINING else (split.casefold(),)
  found = [s for s in splits if s.casefold() in wanted]
  left_out = []
  if found:
    root = data / found[0]
    if classes_at_top:
      left_out.append(
        f"folders beside {found[0]}: {abbreviated(classes_at_top)}"
      )
  elif classes_at_top or not splits:
    root = data
  else:
    raise ValueError(
      f"{data} has no folder {split}; it has {', '.join(splits)}; pass one of"
      " these as split"
    )
  chosen = [s for word in HELD_OUT for s in splits if s.casefold() == word]
  held_out = [s for s in chosen if s not in found][:1]
  unread = [s for s in splits if s not in (*found, *held_out)]
  if unread and split.casefold() in TRAINING:
    left_out.append(f"split folders that are not used: {', '.join(unread)}")
  inside = entries(root)
  folders = [e.name for e in inside if e.kind == FOLDER and not e.is_system]
  if root == data:
    folders = [name for name in folders if name not in splits]
  alone = not folders and any(entry.is_image for entry in inside)
  by_name = {ALONE: ""} if alone else _by_name(root, folders)
  left_out += loose(inside, beside=not alone)
  return _listed(root, by_name, only, left_out, "".join(held_out))


def _split_folders(
  data: epath.Path, top: Sequence[Entry]
) -> tuple[list[str], list[str]]:
  """Returns the class folders and the split folders at the top of the data.

  A folder with the name of a split is a split if it has folders and no images,
  or if nothing else can be a class.
  """
  folders = [entry.name for entry in top if entry.kind == FOLDER]
  others = [name for name in folders if name.casefold() not in SPLITS]
  classes, splits = list(others), []
  for name in folders:
    if name.casefold() not in SPLITS:
      continue
    inside = [e for e in entries(data / name) if not e.is_system]
    has_images = any(entry.is_image for entry in inside)
    has_folders = any(entry.kind == FOLDER for entry in inside)
    if others and (has_images or not has_folders):
      classes.append(name)
    else:
      splits.append(name)
  return classes, splits


def _by_name(root: epath.Path, folders: Sequence[str]) -> dict[str, str]:
  """Returns the class folders by the names of their classes."""
  by_name: dict[str, str] = {}
  for folder in folders:
    if normal(folder) in by_name:
      raise ValueError(
        f"{root} has two folders whose names look the same, {folder}, in two"
        " Unicode forms; rename one"
      )
    by_name[normal(folder)] = folder
  if not by_name:
    raise ValueError(
      f"{root} has no image and no class folder; put images into it, or into"
      " one folder per class"
    )
  return by_name


def _listed(
  root: epath.Path,
  by_name: dict[str, str],
  only: Sequence[str],
  left_out: list[str],
  held_out: str,
) -> Listing:
  """Lists the images in the class folders of a split."""
  names = [normal(name) for name in only] or sorted(by_name)
  strangers = [name for name in by_name if name not in names]
  left_out = [
    *left_out,
    *phrase_of(
      strangers, "class that is not read", "classes that are not read"
    ),
  ]
  if not set(names) & set(by_name):
    raise ValueError(
      f"{root} has the classes {abbreviated(list(by_name))}, but none of"
      f" {abbreviated(names)}; rename its folders"
    )
  present = [by_name.get(name) for name in names]
  inside = [[] if name is None else entries(root / name) for name in present]
  # If there are no class folders, `loose` has already named the other entries.
  left_out += left_in_classes(root, present, inside) if any(present) else []
  files = [[e.name for e in found if e.is_image] for found in inside]
  for folder, found in zip(present, files, strict=True):
    if folder is not None and not found:
      _refuse_empty(root / folder)
  sizes = _check_files(root, present, inside, files)
  return Listing(
    folder=os.fspath(root),
    names=names,
    folders=present,
    files=files,
    left_out=left_out,
    digests=_digests(names, files, sizes),
    held_out=held_out,
  )


def _refuse_empty(folder: epath.Path) -> None:
  """Refuses a class folder that has no images."""
  deeper = [
    entry.name
    for entry in entries(folder)
    if entry.kind == FOLDER
    and any(e.is_image for e in entries(folder / entry.name))
  ]
  if deeper:
    raise ValueError(
      f"class folder {folder} has no image, but its folder {deeper[0]} has;"
      " move the images up, or pass the folder above as path"
    )
  raise ValueError(
    f"class folder {folder} has no image of a format that is read; put"
    f" {', '.join(SUFFIXES)} files into it or remove it"
  )


def _check_files(
  root: epath.Path,
  folders: Sequence[str | None],
  inside: Sequence[Sequence[Entry]],
  files: Sequence[Sequence[str]],
) -> list[list[int]] | None:
  """Returns the sizes of all images, or None for a bucket.

  Raises:
    ValueError: if there is a dead link or an empty file.
  """
  for folder, found in zip(folders, inside, strict=True):
    for entry in found:
      if entry.kind == DEAD and entry.suffix in SUFFIXES:
        raise ValueError(
          f"{root / (folder or '') / entry.name} is a link to a file that does"
          " not exist; restore the file or remove the link"
        )
  if in_bucket(root):
    return None

  def sizes(folder: str | None, names: Sequence[str]) -> list[int]:
    place = os.path.join(os.fspath(root), folder or "")
    return [os.stat(os.path.join(place, name)).st_size for name in names]

  # Use threads, because each request to a file server takes long.
  with futures.ThreadPoolExecutor() as threads:
    result = list(threads.map(sizes, folders, files))
  for folder, names, found in zip(folders, files, result, strict=True):
    for name, size in zip(names, found, strict=True):
      if not size:
        raise ValueError(
          f"{root / (folder or '') / name} is empty, 0 bytes; replace or"
          " remove it"
        )
  return result


def _digests(
  names: Sequence[str],
  files: Sequence[Sequence[str]],
  sizes: Sequence[Sequence[int]] | None,
) -> dict[str, str]:
  """Returns digests of images' names and, if they are known, of their sizes."""
  lines = [
    f"{name}/{normal(file)}"
    for name, found in zip(names, files, strict=True)
    for file in found
  ]
  digests = {"names of files": _digest(lines)}
  if sizes is not None:
    numbers = [str(size) for found in sizes for size in found]
    digests["sizes of files"] = _digest(numbers)
  return digests


def _digest(lines: Sequence[str]) -> str:
  text = "\n".join(lines).encode("utf-8", "surrogateescape")
  return hashlib.sha256(text).hexdigest()[:16]

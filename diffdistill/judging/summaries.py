"""Keeps every evaluation of a run in its own files, and copies one for reports.

  evaluated/evaluation_<images>_<hash>.json       settings, judge and rows
  evaluated/evaluation_<images>_<hash>.png        the curves
  evaluated/evaluation_<images>_<hash>_compared.png   images of the same noise

The hash is of the settings, so an evaluation replaces only one with the same
settings. evaluation.json, evaluation.png and samples/compared.png are copies of
the largest evaluation: most images first, then most rows, then the newest.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from diffdistill.judging.judged_rows import FOLDER
from diffdistill.system.files import (
  digest_of,
  json_of,
  matching,
  read_json,
  write_atomically,
)

FILE = "evaluation.json"
PREFIX = "evaluation_"
# A new evaluation replaces an old one if all these settings are equal.
SETTINGS = (
  "metric",
  "detector",
  "resizer",
  "reference",
  "num_images",
  "seed",
  "rounding",
  "exported",
)
# The endings of an evaluation's two pictures, and the path in the workdir to
# which each picture is copied for reports.
CURVES, SHEET = ".png", "_compared.png"
COPIES = {CURVES: "evaluation.png", SHEET: "samples/compared.png"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
  """An evaluation on disk.

  Args:
    path: the path of its JSON file.
    summary: the content of this file.
  """

  path: epath.Path
  summary: Mapping[str, Any]

  @property
  def size(self) -> tuple[int, int]:
    """The numbers of images and rows, by which evaluations are compared."""
    count = self.summary.get("num_images")
    rows = len(self.summary["rows"])
    return (count if isinstance(count, int) else 0), rows

  @property
  def words(self) -> str:
    images, rows = self.size
    return f"{images} images, {rows} row{'' if rows == 1 else 's'}"


def read_summary(path: epath.Path) -> dict[str, Any]:
  """Reads an evaluation from its file.

  Raises:
    ValueError: if the file is damaged; one line with a remedy.
  """
  try:
    summary = read_json(path)
  except ValueError as error:
    raise ValueError(
      f"{error}; run diffdistill evaluate to write it again"
    ) from error
  if not is_summary(summary):
    raise ValueError(
      f"{path} is damaged: it has no metric, or rows without a model, a number"
      " of steps and a distance; run diffdistill evaluate to write it again"
    )
  return summary


def is_summary(written: Any) -> bool:
  """Whether an evaluation has a metric, and rows with the required columns."""
  if not isinstance(written, dict):
    return False
  metric, rows = written.get("metric"), written.get("rows")
  if not (isinstance(metric, str) and isinstance(rows, list) and rows):
    return False
  return all(
    isinstance(row, dict)
    and isinstance(row.get("model"), str)
    and isinstance(row.get("steps"), int)
    and row["steps"] >= 1
    and isinstance(row.get(metric), int | float | None)
    for row in rows
  )


def keep_summary(
  workdir: epath.Path,
  summary: Mapping[str, Any],
  pictures: Mapping[str, bytes],
  say: Callable[[str], None],
) -> None:
  """Writes an evaluation, and copies the largest one to the files for reports.

  Args:
    workdir: the workdir of the run.
    summary: the evaluation, with its rows.
    pictures: PNG files by their ending, CURVES or SHEET.
    say: receives one line for each file that was written or is damaged.
  """
  folder = workdir / FOLDER
  new = Kept(path=folder / f"{_stem(summary)}.json", summary=summary)
  _write(new.path, _text(new))
  for ending in COPIES:
    _write(_picture(new, ending), pictures.get(ending))
  say(f"this evaluation ({new.words}) is in {new.path}")
  largest = max(read_all(workdir, say, new), key=lambda o: o.size, default=new)
  if largest.size <= new.size:
    largest = new
  place = workdir / FILE
  if largest is new:
    say(f"{place} is this evaluation")
  else:
    say(
      f"{place} is the larger evaluation in {largest.path} ({largest.words});"
      " remove that file and evaluate again to have the smaller one there"
    )
  if largest.path != place:
    _copy(workdir, largest)


def rename_models(workdir: epath.Path, names: Mapping[str, str]) -> None:
  """Gives the rows of some models the new names of these models.

  Args:
    workdir: the folder of the run.
    names: the new name of each model, by its old name.
  """
  paths = matching(workdir / FOLDER, f"{PREFIX}*.json")
  for path in (*paths, workdir / FILE):
    try:
      summary = read_summary(path)
    except (FileNotFoundError, ValueError):
      continue  # A damaged evaluation is named when it is read for a report.
    rows = [
      {**row, "model": names.get(row["model"], row["model"])}
      for row in summary["rows"]
    ]
    _write(path, _text(Kept(path=path, summary={**summary, "rows": rows})))


def _stem(summary: Mapping[str, Any]) -> str:
  """The file name of an evaluation, without its ending."""
  settings = {name: summary.get(name) for name in SETTINGS}
  settings["steps"] = sorted({row["steps"] for row in summary["rows"]})
  return f"{PREFIX}{summary.get('num_images')}_{digest_of(settings)[:8]}"


def read_all(
  workdir: epath.Path,
  say: Callable[[str], None],
  new: Kept | None = None,
) -> list[Kept]:
  """Reads every evaluation on disk; skips those that are damaged.

  evaluation.json is in the list only if no file in the folder has the same
  settings: somebody may have copied it here without the folder.

  Args:
    workdir: the workdir of the run.
    say: receives one line for each damaged file.
    new: an evaluation that is known, and not read again or returned.
  """
  result: list[Kept] = []
  paths = matching(workdir / FOLDER, f"{PREFIX}*.json")
  place = workdir / FILE
  if place.exists():
    paths.append(place)
  for path in paths:
    if new is not None and path == new.path:
      continue
    try:
      summary = read_summary(path)
    except ValueError as error:
      say(f"warning: {error}, or remove it; it is skipped")
      continue
    known = [other.path.name for other in (*result, *([new] if new else []))]
    if path != place or f"{_stem(summary)}.json" not in known:
      result.append(Kept(path=path, summary=summary))
  return result


def _copy(workdir: epath.Path, kept: Kept) -> None:
  """Copies an evaluation and its pictures; removes pictures that it lacks."""
  for ending, name in COPIES.items():
    picture = _picture(kept, ending)
    _write(workdir / name, picture.read_bytes() if picture.exists() else None)
  _write(workdir / FILE, _text(kept))


def _text(kept: Kept) -> bytes:
  return f"{json_of(dict(kept.summary))}\n".encode()


def _write(path: epath.Path, data: bytes | None) -> None:
  """Writes a file, or removes it if there is no data.

  A file that already has this content is not touched. So a finished workdir can
  be evaluated again even if it cannot be written.
  """
  if data is None:
    if path.exists():
      path.unlink()
  elif not path.exists() or path.read_bytes() != data:
    write_atomically(path, data)


def _picture(kept: Kept, ending: str) -> epath.Path:
  return kept.path.with_name(f"{kept.path.stem}{ending}")

"""The names that a workdir keeps for itself: no stage and no output has them.

Stages are folders of a workdir, beside those of other kinds:

  samples, evaluated, tensorboard     of the whole run
  checkpoints, best, final            of one round, in the round's own folder
"""

import os
import re
from collections.abc import Collection, Sequence

from etils import epath

from diffdistill.system.files import in_bucket

# Made by tools/train.py, judging/comparison.py, judged_rows.py and
# training/report.py.
FOLDERS = ("samples", "evaluated", "tensorboard")
# Made by training/checkpoint.py. A workdir with such a folder looks like a
# round.
PARTS_OF_ROUNDS = ("checkpoints", "best", "final")
# Files begin so: config.json, metrics.jsonl, evaluation.json and .png, ...
FILES = (
  "config.json",
  "data.json",
  "environment.json",
  "metrics.jsonl",
  "evaluation.json",
  "evaluation.png",
)
LONGEST = 64
# Letters that are no letters in a pattern.
PATTERN = "[*?\\"
_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def check_stage_name(name: object) -> None:
  """Refuses a stage name that is no name of a folder of its own.

  Raises:
    ValueError: for other letters than A-Z, a-z, 0-9, _ and -, for a long name
      and for one that a workdir keeps for itself.
  """
  if not isinstance(name, str) or not _STAGE.fullmatch(name):
    raise ValueError(
      f"a stage is called {name!r:.80}; pass a name of A-Z, a-z, 0-9, _ and -,"
      " such as halve_again"
    )
  if len(name) > LONGEST:
    raise ValueError(
      f"a stage is called {name[:20]}..., {len(name)} letters; pass a name of"
      f" {LONGEST} or fewer"
    )
  kept = (*FOLDERS, *PARTS_OF_ROUNDS)
  if name.lower() in kept:
    raise ValueError(
      f"a stage is called {name!r}, a name that a workdir keeps for itself;"
      f" pass another than {', '.join(kept)}"
    )


def check_workdir(workdir: epath.Path) -> None:
  """Refuses to train where checkpoints could not be saved.

  Orbax looks for the parts of what it saves with a pattern of the whole path:
  it would find nothing in a folder called "runs [2]", or parts of another run.
  Its storage takes a backslash for a slash. Reading goes well.

  Raises:
    ValueError: where the path, from its root on, has such a letter.
  """
  whole = workdir if workdir.is_absolute() else workdir.resolve()
  for letter in PATTERN:
    if letter in str(whole):
      raise ValueError(
        f"the workdir is {whole}, and checkpoints cannot be saved below a"
        f" folder with {letter} in its name; pass a --workdir without it"
      )


def check_out(
  out: epath.Path,
  workdirs: Sequence[epath.Path] = (),
  stages: Collection[str] = (),
  *,
  folder: bool = False,
) -> str:
  """Refuses to write over something of another kind, or of a run's own.

  Args:
    out: where a command writes to.
    workdirs: of the runs that it reads.
    stages: of these runs.
    folder: whether it writes a folder.

  Returns:
    ", replaced" where a file is there already, for the command to say; else "".

  Raises:
    ValueError: where it is a folder in place of a file, or a place that a
      workdir keeps.
  """
  for workdir in workdirs:
    inside = _inside(out, workdir)
    first = inside[0] if inside else ""
    is_own = first in FILES or first in FOLDERS or first in stages
    if is_own or (folder and inside == ()):
      raise ValueError(
        f"out is {out}, where the run in {workdir} keeps its own files; pass"
        " another place"
      )
  if not folder and out.is_dir():
    raise ValueError(f"out is {out}, which is a folder; pass a file's name")
  return ", replaced" if not folder and out.exists() else ""


def _inside(place: epath.Path, folder: epath.Path) -> tuple[str, ...] | None:
  """The names that lead from a folder to a place; None if it is elsewhere."""
  real = [
    path if in_bucket(path) else epath.Path(os.path.realpath(path))
    for path in (place, folder)
  ]
  if not real[0].is_relative_to(real[1]):
    return None
  return real[0].relative_to(real[1]).parts

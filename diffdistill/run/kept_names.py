"""The names that a workdir reserves: no stage and no output may have them.

Each stage is a folder of the workdir. Other folders are:

  samples, evaluated, tensorboard, wandb    folders of the whole run
  checkpoints, best, final                  folders in the folder of each round
"""

import fnmatch
import os
import re
from collections.abc import Collection, Sequence

from etils import epath

from diffdistill.system.files import in_bucket

# Folders that tools/train.py, judging/comparison.py, judging/judged_rows.py and
# training/writers.py make.
FOLDERS = ("samples", "evaluated", "tensorboard", "wandb")
# Folders that training/checkpoint.py makes in a round's folder. A workdir with
# such a folder would look like a round.
PARTS_OF_ROUNDS = ("checkpoints", "best", "final")
# Patterns of the files that a run, `benchmark` and the lock write into a
# workdir.
FILES = (
  "benchmark*.json",
  "config.json",
  "data.json",
  "environment.json",
  "lock.json",
  "metrics.jsonl",
  "redone.json",
  "wandb.json",
  "evaluation.json",
  "evaluation.png",
)
LONGEST = 64
# Letters with a special meaning in a glob pattern.
PATTERN = "[*?\\"
_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def check_stage_name(name: object) -> None:
  """Refuses a stage name that cannot be the name of the stage's own folder.

  Raises:
    ValueError: if the name has other letters than A-Z, a-z, 0-9, _ and -, is
      too long, or is a name that a workdir reserves.
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
  """Refuses a workdir below which checkpoints could not be saved.

  Orbax finds the files of a checkpoint by a glob pattern of the whole path. In
  a folder called "runs [2]" the pattern would match nothing, or files of
  another run. Orbax also takes a backslash for a slash. Only saving fails;
  reading works.

  Raises:
    ValueError: if the absolute path has such a letter.
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
  """Refuses an output that would replace a folder or a run's own files.

  Args:
    out: the file or folder that a command writes.
    workdirs: the workdirs of the runs that the command reads.
    stages: the names of the stages of these runs.
    folder: whether the output is a folder.

  Returns:
    ", replaced" if the file exists already, for the command's message;
    otherwise "".

  Raises:
    ValueError: if `out` is a folder and should be a file, or if a run keeps its
      own files there.
  """
  for workdir in workdirs:
    inside = _inside(out, workdir)
    first = inside[0] if inside else ""
    is_file = any(fnmatch.fnmatchcase(first, name) for name in FILES)
    is_own = is_file or first in FOLDERS or first in stages
    if is_own or (folder and inside == ()):
      raise ValueError(
        f"out is {out}, where the run in {workdir} keeps its own files; pass"
        " another place"
      )
  if not folder and out.is_dir():
    raise ValueError(f"out is {out}, which is a folder; pass a file's name")
  return ", replaced" if not folder and out.exists() else ""


def _inside(place: epath.Path, folder: epath.Path) -> tuple[str, ...] | None:
  """The parts of a path below a folder; None if it is not in the folder."""
  real = [
    path if in_bucket(path) else epath.Path(os.path.realpath(path))
    for path in (place, folder)
  ]
  if not real[0].is_relative_to(real[1]):
    return None
  return real[0].relative_to(real[1]).parts

"""The command that writes a config file for the user to change."""

import os
from pathlib import Path

from etils import epath

from diffdistill.run.recipes import FOLDER
from diffdistill.system.files import in_bucket, write_atomically
from diffdistill.tools.speaking import answer

# The name of the installed config file that is copied.
RECIPE = "folder"


def init(out: epath.Path) -> None:
  """Copies configs/folder.py into a new file, which the user can change.

  Args:
    out: the file.

  Raises:
    ValueError: if the file exists, does not end in .py, or is in a bucket.
  """
  if in_bucket(out) or out.suffix != ".py":
    raise ValueError(f"--out is {out}; pass a file on a disk, such as my.py")
  if os.path.lexists(out):
    raise ValueError(f"{out} exists already; pass another --out, or remove it")
  text = Path(FOLDER / f"{RECIPE}.py").read_text(encoding="utf-8")
  text = text.replace(f"--config={RECIPE}:", f"--config={out}:")
  write_atomically(out, text)
  answer(
    f"{out} is written; change what you like, then: `diffdistill train"
    f" --config={out}:progressive --config.data.source.path=FOLDER"
    f" --workdir=runs/{out.stem}`"
  )

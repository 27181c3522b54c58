"""The command that copies what the rest of a run needs."""

from pathlib import Path

from etils import epath

from diffdistill.run import from_config
from diffdistill.system.files import in_bucket
from diffdistill.tools.carrying import carry as carry_run
from diffdistill.tools.speaking import answer, say


def carry(workdir: epath.Path, out: epath.Path) -> None:
  """Writes a workdir with only what the rest of its run asks for.

  Args:
    workdir: of the run.
    out: a folder that is not there yet.

  Raises:
    ValueError: where `out` is there, one of both is a bucket, or a training is
      at work in the workdir.
  """
  for place in (workdir, out):
    if in_bucket(place):
      raise ValueError(
        f"{place} is in a bucket, which other machines reach as it is; pass"
        " folders of a disk"
      )
  run = from_config.reopen(workdir)
  if out.exists():
    raise ValueError(f"out is {out}, which is there already; pass a new folder")
  carry_run(run, workdir, out, say)
  files = (path for path in Path(out).rglob("*") if path.is_file())
  size = sum(path.stat().st_size for path in files)
  answer(f"{size / 1e6:.1f} MB to go on with elsewhere: {out}")

"""The command that writes a page about one run or several."""

from collections.abc import Sequence

from etils import epath

from diffdistill.reporting.page import write_report
from diffdistill.run.kept_names import check_out
from diffdistill.run.workdir import stored_config
from diffdistill.tools.speaking import answer, say


def report(workdirs: Sequence[epath.Path], out: epath.Path) -> None:
  """Writes one page of a run, or of several side by side; or its numbers.

  Args:
    workdirs: of the runs, finished or not.
    out: an .html file, or a .json file of the numbers alone.

  Raises:
    ValueError: where one holds no run, or for another ending.
  """
  replaced = [
    check_out(out, [workdir], stored_config(workdir)["stages"])
    for workdir in workdirs
  ]
  write_report(workdirs, out, say)
  answer(f"{', '.join(map(str, workdirs))}: {out}{replaced[0]}")

"""The command that writes a page about one run or several."""

from collections.abc import Sequence

from etils import epath

from diffdistill.reporting.page import write_report
from diffdistill.run.kept_names import check_out
from diffdistill.run.workdir import stored_config
from diffdistill.tools.speaking import answer, say


def report(workdirs: Sequence[epath.Path], out: epath.Path) -> None:
  """Writes one page about one run or several runs, or only their numbers.

  Args:
    workdirs: the folders of the runs, finished or not.
    out: an .html file for a page, a .json file for only the numbers, or a .csv
      file for only the rows of the evaluations.

  Raises:
    ValueError: if a workdir holds no run, or `out` has another ending.
  """
  replaced = [
    check_out(out, [workdir], stored_config(workdir)["stages"])
    for workdir in workdirs
  ]
  write_report(workdirs, out, say)
  answer(f"{', '.join(map(str, workdirs))}: {out}{replaced[0]}")

"""Processes of the command line, forked from one that has imported everything.

Each is as new as one that Python has just started, and waits for no import.
"""

import multiprocessing
import pathlib
import runpy

import diffdistill

PACKAGE = pathlib.Path(diffdistill.__file__).parent
SCRIPT = pathlib.Path(__file__).parent / "one_process.py"


class Forked:
  """Starts processes; as a context manager it kills those that are left."""

  def __init__(self):
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(
      [
        "diffdistill.cli.reading",
        "diffdistill.run.agreement",
        *(
          f"diffdistill.tools.{path.stem}"
          for path in (PACKAGE / "tools").glob("*.py")
        ),
      ]
    )
    self._started = []

  def __enter__(self) -> "Forked":
    return self

  def __exit__(self, *_) -> None:
    for process in self._started:
      process.kill()
      process.join()

  def __call__(self, log, devices, *arguments, kill=None):
    """Starts `diffdistill` with these arguments.

    Args:
      log: a file to which both outputs are appended.
      devices: how many CPU devices it has.
      arguments: of the command line.
      kill: None, or (words, number, delay): it kills itself, by SIGKILL, at its
        so manyth act on the disk, `delay` seconds later. Acts are counted from
        the first whose path contains the words.
    """
    given = {
      "arguments": list(map(str, arguments)),
      "devices": devices,
      "log": str(log),
      "cache": str(pathlib.Path(".cache/jax").absolute()),
      "kill": kill,
    }
    process = self._context.Process(
      target=runpy.run_path, args=(str(SCRIPT), {"given": given}), daemon=True
    )
    process.start()
    self._started.append(process)
    return process

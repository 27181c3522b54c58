"""Starts commands as forks of a process that has imported everything.

A forked command behaves like a new process, but needs no time for imports.
"""

import multiprocessing
import pathlib
import runpy

import diffdistill

PACKAGE = pathlib.Path(diffdistill.__file__).parent
SCRIPT = pathlib.Path(__file__).parent / "one_process.py"


class Forked:
  """Starts commands; as a context manager it kills those that still run."""

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

  def __call__(self, log, devices, *arguments, kill=None, environment=None):
    """Starts `diffdistill` with these arguments.

    Args:
      log: a file to which both outputs are appended.
      devices: the number of CPU devices of the command.
      arguments: the arguments of the command line.
      kill: None, or (words, number, delay): the process kills itself by SIGKILL
        `delay` seconds after its act on the disk with this number. Acts are
        counted from the first one whose path contains the words.
      environment: environment variables to set.
    """
    given = {
      "arguments": list(map(str, arguments)),
      "devices": devices,
      "log": str(log),
      "cache": str(pathlib.Path(".cache/jax").absolute()),
      "kill": kill,
      "environment": environment or {},
    }
    process = self._context.Process(
      target=runpy.run_path, args=(str(SCRIPT), {"given": given}), daemon=True
    )
    process.start()
    self._started.append(process)
    return process

"""Writers of a run's metrics for TensorBoard and for Weights & Biases.

A run always has its metrics.jsonl. The field `writer` of a config names one
more writer:

  if_installed    TensorBoard's event files, if clu and TensorFlow are installed
  tensorboard     TensorBoard's event files, in the folder tensorboard
  wandb           Weights & Biases; it is told its project, its entity and its
                  mode by its own variables, such as WANDB_PROJECT
  none            no other writer
"""

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from etils import epath

from diffdistill.system.extras import installing
from diffdistill.system.files import in_bucket, read_json, write_json

# The packages that each writer needs.
WRITERS = {
  "if_installed": (),
  "tensorboard": ("clu", "tensorflow"),
  "wandb": ("wandb",),
  "none": (),
}
DEFAULT = "if_installed"
# This file in a workdir keeps the id of the run at Weights & Biases.
WANDB_FILE = "wandb.json"
PROJECT = "diffdistill"
Number = int | float


@runtime_checkable
class Writer(Protocol):
  """Writes the numbers of a run for another program; one process has it.

  An error that stops the writer is an OSError of one line.
  """

  def write(self, name: str, step: int, values: Mapping[str, Number]) -> None:
    """Writes the values of update `step` of the round `name`."""

  def close(self) -> None:
    """Ends the writing, when the whole run is finished."""


class NoWriter:
  """Writes nothing."""

  def write(self, name: str, step: int, values: Mapping[str, Number]) -> None:
    pass

  def close(self) -> None:
    pass


def check_writer(kind: str) -> None:
  """Refuses a name that is no writer.

  Raises:
    ValueError: if there is no such writer.
  """
  if kind not in WRITERS:
    raise ValueError(f"writer is {kind!r}; pass one of {', '.join(WRITERS)}")


def check_installed(kind: str) -> None:
  """Refuses a writer whose packages are not installed.

  Raises:
    ValueError: if a package is missing.
  """
  missing = [package for package in WRITERS[kind] if not _installed(package)]
  if missing:
    raise ValueError(
      f"writer is {kind!r}, but {' and '.join(missing)} cannot be imported;"
      f" {installing(kind)}, or pass writer=none"
    )


def _installed(package: str) -> bool:
  """Whether a package can be imported.

  A folder of the same name, such as the folder wandb of other runs, is a
  package without a file.
  """
  spec = importlib.util.find_spec(package)
  return spec is not None and spec.origin is not None


def open_writer(
  kind: str,
  workdir: epath.Path,
  config: Mapping[str, Any],
  say: Callable[[str], None],
) -> Writer:
  """Opens the writer of a run; only the first process calls this.

  Args:
    kind: the name of the writer.
    workdir: the folder of the run.
    config: the config of the run, as plain values.
    say: receives a line that says where the numbers go.

  Raises:
    OSError: if the writer cannot begin.
  """
  if kind == "wandb":
    return WeightsAndBiases(workdir, config, say)
  if kind == "none":
    return NoWriter()
  try:
    return TensorBoard(workdir)
  except ImportError:
    if kind != DEFAULT:
      raise
    return NoWriter()


class TensorBoard:
  """Writes TensorBoard's event files.

  Args:
    workdir: the folder of the run.

  Raises:
    ImportError: if clu or TensorFlow cannot be imported.
    OSError: if the files cannot be written.
  """

  def __init__(self, workdir: epath.Path):
    from clu import metric_writers

    self._folder = workdir / "tensorboard"
    try:
      self._writer = metric_writers.SummaryWriter(str(self._folder))
    except Exception as error:
      raise self._about(error) from error

  def write(self, name: str, step: int, values: Mapping[str, Number]) -> None:
    scalars = {f"{name}/{key}": value for key, value in values.items()}
    try:
      self._writer.write_scalars(step, scalars)
    except Exception as error:
      # TensorFlow raises errors of its own classes if the disk refuses a write.
      raise self._about(error) from error

  def close(self) -> None:
    try:
      self._writer.close()
    except Exception as error:
      raise self._about(error) from error

  def _about(self, error: Exception) -> OSError:
    return OSError(
      f"{self._folder} cannot be written ({_reason(error)}); make room there,"
      " or let it be written, and the same command goes on"
    )


class WeightsAndBiases:
  """Writes to Weights & Biases; a run that goes on is one run there.

  Each round has its own axis of updates. If a killed run repeats updates after
  its newest checkpoint, their values are there twice.

  Args:
    workdir: the folder of the run, which keeps the id of the run.
    config: the config of the run, as plain values.
    say: receives a line that says where the run is.

  Raises:
    OSError: if the run cannot begin there.
  """

  def __init__(
    self,
    workdir: epath.Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
  ):
    import wandb

    self._rounds: set[str] = set()
    try:
      self._run = wandb.init(
        id=_id(workdir),
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", workdir.name),
        dir=None if in_bucket(workdir) else str(workdir),
        config=dict(config),
        # Its own lines would come between the lines of the progress.
        settings=wandb.Settings(console="off", silent=True),
      )
    except Exception as error:
      raise OSError(
        f"Weights & Biases does not begin ({_reason(error)}); run wandb login,"
        " or set WANDB_MODE=offline, or pass writer=none"
      ) from error
    if self._run.offline:
      where = f"`wandb sync {os.path.dirname(self._run.dir)}` uploads it"
    else:
      where = self._run.url
    say(f"Weights & Biases has the metrics as run {self._run.id}: {where}")

  def write(self, name: str, step: int, values: Mapping[str, Number]) -> None:
    axis = f"{name}/step"
    try:
      if name not in self._rounds:
        self._run.define_metric(axis)
        self._run.define_metric(f"{name}/*", step_metric=axis)
        self._rounds.add(name)
      numbers = {f"{name}/{key}": value for key, value in values.items()}
      self._run.log({axis: step, **numbers})
    except Exception as error:
      raise self._about(error) from error

  def close(self) -> None:
    try:
      self._run.finish()
    except Exception as error:
      raise self._about(error) from error

  def _about(self, error: Exception) -> OSError:
    return OSError(
      f"Weights & Biases takes no more numbers ({_reason(error)}); the same"
      " command goes on, or pass writer=none"
    )


def _id(workdir: epath.Path) -> str:
  """The id of the run, which the workdir keeps from the first start on."""
  path = workdir / WANDB_FILE
  if path.exists():
    return str(read_json(path)["id"])
  made = uuid.uuid4().hex[:8]
  write_json(path, {"id": made})
  return made


def _reason(error: Exception) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__

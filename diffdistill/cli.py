"""The command line: train, sample, evaluate, list. The only file with FLAGS.

Exit status 0; 1 for a refusal, in one line; 2 for bad usage.
"""

import sys
from pathlib import Path
from types import TracebackType

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
  "config", None, "A config and its recipe: configs/digits.py:progressive."
)
flags.DEFINE_string(
  "workdir", None, "Folder or bucket of a run: checkpoints, metrics, images."
)
flags.DEFINE_string(
  "round", None, "Whose samples; the last student's if unset."
)
flags.DEFINE_integer("num_images", None, "How many images to make or judge.")
flags.DEFINE_list(
  "num_steps", None, "Of the sampler; evaluate takes several: 1,2,4,8."
)
flags.DEFINE_integer("seed", 0, "Of the noise of samples.")
flags.DEFINE_integer("label", None, "The class of all samples.")
flags.DEFINE_string(
  "out", "samples.png", "Where samples go: a .png sheet or an .npz of bytes."
)
flags.DEFINE_bool("multihost", False, "Join a pod's other processes first.")

USAGE = """usage: diffdistill COMMAND [--flag=value ...]

  train     --config=configs/digits.py:progressive --workdir=runs/digits
            [--config.stages.halve.num_updates=200 ...] [--multihost]
  sample    --workdir=runs/digits [--round=halve/004] [--num_images=64]
            [--num_steps=4] [--seed=0] [--label=3] [--out=grid.png]
  evaluate  --workdir=runs/digits [--num_steps=1,2,4,8] [--num_images=10000]
  list      objectives, networks, data sources, configs and recipes"""


def main() -> int:
  """Runs one command; returns the exit status."""
  command, *arguments = sys.argv[1:] or ["help"]
  if command in ("help", "--help", "-h"):
    print(USAGE)
    return 0
  if command not in COMMANDS:
    return _refuse(
      f"{command!r} is no command; pass one of {', '.join(COMMANDS)}", 2
    )
  try:
    rest = FLAGS([sys.argv[0], *arguments])[1:]
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    return _refuse(error, 2)
  except (OSError, ImportError) as error:
    return _refuse(error, 2)
  if rest:
    return _refuse(f"{rest[0]!r} is no flag; pass --name=value", 2)
  try:
    if FLAGS.multihost:
      jax.distributed.initialize()
    COMMANDS[command]()
  except KeyboardInterrupt:
    return _refuse("interrupted; the same command goes on from here", 130)
  except Exception as error:
    if not _is_refusal(error):
      raise
    return _refuse(error, 1)
  return 0


def _train() -> None:
  from diffdistill import commands

  commands.train(_required("config"), _workdir())


def _sample() -> None:
  from diffdistill import commands

  steps = _whole_numbers("num_steps")
  if steps is not None and len(steps) != 1:
    raise UsageError(f"--num_steps is {FLAGS.num_steps}; sample takes one")
  commands.sample(
    _workdir(),
    FLAGS.round,
    64 if FLAGS.num_images is None else FLAGS.num_images,
    steps[0] if steps else None,
    FLAGS.seed,
    FLAGS.label,
    epath.Path(FLAGS.out),
  )


def _evaluate() -> None:
  from diffdistill import commands

  commands.evaluate(_workdir(), FLAGS.num_images, _whole_numbers("num_steps"))


def _list() -> None:
  from diffdistill import commands

  commands.list_all()


COMMANDS = {
  "train": _train,
  "sample": _sample,
  "evaluate": _evaluate,
  "list": _list,
}


class UsageError(Exception):
  """A flag that is missing or cannot be read."""


def _required(name: str):
  value = getattr(FLAGS, name)
  if value is None:
    raise UsageError(f"--{name} is missing; see diffdistill help")
  return value


def _workdir() -> epath.Path:
  return epath.Path(_required("workdir"))


def _whole_numbers(name: str) -> tuple[int, ...] | None:
  values = getattr(FLAGS, name)
  if values is None:
    return None
  if not values or not all(v.isdigit() and int(v) > 0 for v in values):
    raise UsageError(
      f"--{name} is {','.join(values)!r}; pass positive whole numbers: 1,2,4"
    )
  return tuple(int(v) for v in values)


def _is_refusal(error: Exception) -> bool:
  """Whether a person can mend it: the system said no, or our own code did.

  What libraries raise inside our code is a fault, and keeps its traceback.
  """
  if isinstance(error, OSError | UsageError):
    return True
  innermost: TracebackType | None = error.__traceback__
  while innermost is not None and innermost.tb_next is not None:
    innermost = innermost.tb_next
  if innermost is None:
    return False
  raised_in = Path(innermost.tb_frame.f_code.co_filename)
  return Path(__file__).parent in raised_in.parents


def _refuse(error: Exception | str, status: int) -> int:
  message = " ".join(str(error).split()) or type(error).__name__
  print(f"diffdistill: {message}", file=sys.stderr)
  return status

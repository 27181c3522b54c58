"""The command line; the only file with FLAGS.

Exit status 0; 1 for a refusal, in one line; 2 for bad usage; 75 after SIGTERM
or SIGHUP, and 130 after an interrupt (train saves first where an update ends
within seconds): the same command goes on; 70 where it hung, or, of several
processes, one failed or was lost: start all again.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from diffdistill import usage
from diffdistill.ranges import SEED, Range, brief
from diffdistill.run import agreement, environment, recipes
from diffdistill.system import hosts, signals
from diffdistill.system.links import GO_ON
from diffdistill.system.places import place, places
from diffdistill.system.refusals import line_of

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
  "config",
  None,
  "A recipe, digits:progressive, or a file's: own.py:mine.",
)
flags.DEFINE_multi_string(
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
flags.DEFINE_float("guidance", None, "The weight of guidance; 0 for none.")
flags.DEFINE_integer(
  "interpolate", None, "Images a row, from one noise to another; 11, say."
)
flags.DEFINE_string(
  "out",
  None,
  "Where to: samples' .png sheet or .npz, packed data, or a model's folder.",
)
flags.DEFINE_string(
  "inception", None, "pt_inception-2015-12-05-6726825d.pth: FID is by it."
)
flags.DEFINE_string(
  "reference", None, "FID's .npz of mu and sigma, or of images."
)
flags.DEFINE_string("from", None, "A model of another framework.")
flags.DEFINE_string(
  "settings", None, "JSON of the settings that its file does not say."
)
flags.DEFINE_string(
  "format", "safetensors", "Of an export: diffusers, safetensors, stablehlo."
)
flags.DEFINE_string("stage", None, "What benchmark times; all by default.")
flags.DEFINE_string("profile", None, "Folder for benchmark's profiler traces.")
flags.DEFINE_integer("num_updates", 50, "Of each of benchmark's turns.")
flags.DEFINE_float(
  "minutes", 0, "Time that one piece of a run may take; 0 for no limit."
)
flags.DEFINE_integer(
  "reserve", 60, "Seconds of --minutes that are kept for saving."
)
flags.DEFINE_string("results", "results", "Folder for the report of a run.")
flags.DEFINE_bool("cpu", False, "Run on a CPU too.")
flags.DEFINE_string(
  "topology", None, "To plan for: v5e:8x8, v5p:4x4x4, v5e:16x16*2, cpu:8."
)
flags.DEFINE_bool("json", False, "Print a plan as JSON, not as a table.")
flags.DEFINE_bool("multihost", False, "Join a pod's other processes first.")
flags.DEFINE_integer(
  "expect_devices", None, "Refuse to start on another number."
)
flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where no cluster says so."
)
flags.DEFINE_integer("num_processes", None, "With --coordinator.")
flags.DEFINE_integer("process_id", None, "With --coordinator: 0, 1, ...")

# Of flags whose command could otherwise ask for any amount of work or memory.
RANGES = {
  "num_images": Range(1, 10**7),
  "num_steps": Range(1, 10**5),
  "seed": SEED,
  "label": Range(0, 10**6),
  "guidance": Range(0, 1000),
  "interpolate": Range(2, 1000),
  "num_updates": Range(1, 10**6),
  "minutes": Range(0, 10**6),
  "reserve": Range(1, 10**6),
  "expect_devices": Range(1, 10**6),
  "num_processes": Range(1, 10**6),
  "process_id": Range(0, 10**6),
}


def main() -> int:
  """Runs one command; returns the exit status."""
  text = usage.answer(sys.argv[1:])
  if text is not None:
    print(text)
    return 0
  command, *arguments = sys.argv[1:]
  if command not in COMMANDS:
    return _refuse(
      f"{command!r} is no command; pass one of {', '.join(COMMANDS)}", 2
    )
  try:
    words = _with_files(arguments)
  except ValueError as error:
    return _refuse(error, 2)
  try:
    rest = FLAGS([sys.argv[0], *words])[1:]
    # A config file that cannot be read says so at its first use.
    hasattr(FLAGS.config, "items")
  except Exception as error:
    # A config file is Python: it can raise anything.
    return _refuse(_flag_error(error, arguments), 2)
  if rest:
    return _refuse(f"{rest[0]!r} is no flag; pass --name=value", 2)
  for name in {name for names in READS.values() for name in names}:
    if FLAGS[name].present and name not in READS[command]:
      reads = ", ".join(f"--{name}" for name in READS[command]) or "no flag"
      return _refuse(f"{command} does not read --{name}; pass {reads}", 2)
  environment.pin()
  try:
    _check_ranges()
    _join()
    if FLAGS.multihost:
      agreement.agree(_command(command))
    COMMANDS[command]()
  except KeyboardInterrupt:
    goes_on = "; the same command goes on from the newest checkpoint"
    return _refuse(f"interrupted{goes_on if command == 'train' else ''}", 130)
  except UsageError as error:
    return _refuse(error, 2)
  except Exception as error:
    if hosts.is_refusal(error):
      return _refuse(error, getattr(error, "status", 1))
    if not jax.distributed.is_initialized():
      raise
    _fail()
  return 0


def _check_ranges() -> None:
  """Refuses a number that no command could do anything with."""
  for name, allowed in RANGES.items():
    values = (
      _whole_numbers(name) if name == "num_steps" else (FLAGS[name].value,)
    )
    for value in values or ():
      refusal = value is not None and allowed.refusal(value)
      if refusal:
        raise UsageError(f"--{name} is {brief(value)}; {refusal}")


def _join() -> None:
  """Joins the processes that a cluster, or flags, started with this one."""
  places = ("coordinator", "num_processes", "process_id")
  given = [name for name in places if FLAGS[name].value is not None]
  if given and not FLAGS.multihost:
    raise UsageError(f"--{given[0]} is for --multihost; pass that too")
  if given and len(given) < len(places):
    (missing, *_) = (name for name in places if name not in given)
    raise UsageError(
      f"--{given[0]} comes without --{missing}; pass all of"
      f" {', '.join(f'--{name}' for name in places)}, or none in a cluster that"
      " JAX knows"
    )
  port = FLAGS.coordinator and re.fullmatch(r".+:(\d{1,5})", FLAGS.coordinator)
  if given and not (port and 0 < int(port[1]) < 2**16):
    raise UsageError(
      f"--coordinator is {brief(FLAGS.coordinator)}; pass HOST:PORT of process"
      " 0"
    )
  if given and not 0 <= FLAGS.process_id < FLAGS.num_processes:
    raise UsageError(
      f"--process_id is {FLAGS.process_id} of {FLAGS.num_processes} processes;"
      " pass 0 to one less than --num_processes"
    )
  if FLAGS.multihost:
    try:
      hosts.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    except ValueError as error:
      raise UsageError(
        f"--multihost finds no cluster ({error}); pass --coordinator, or leave"
        " it out on one host"
      ) from error
  if FLAGS.expect_devices is not None:
    hosts.check_devices(FLAGS.expect_devices)


def _command(name: str) -> dict[str, Any]:
  """What a command does, without how its processes find each other."""
  flags_read = (flag for flag in READS[name] if flag not in HOSTS)
  values: dict[str, Any] = {
    f"--{flag}": FLAGS[flag].value for flag in flags_read
  }
  config = values.pop("--config", None)
  if config is not None:
    values["config"] = config
  if name == "evaluate":
    inception = "DIFFDISTILL_INCEPTION"
    values[inception] = os.environ.get(inception)
  return {"command": name, **values}


def _train() -> None:
  from diffdistill.tools import train

  train.train(_required("config"), _workdir())


def _sample() -> None:
  from diffdistill.tools import sample

  sample.sample(
    _workdir(),
    FLAGS.round,
    64 if FLAGS.num_images is None else FLAGS.num_images,
    _one_num_steps("sample"),
    FLAGS.seed,
    FLAGS.label,
    FLAGS.guidance,
    FLAGS.interpolate,
    _place("out", FLAGS.out or "samples.png"),
  )


def _pack() -> None:
  from diffdistill.tools import pack

  out = str(_place("out", _required("out")))
  pack.pack(_required("config"), out)


def _import() -> None:
  from diffdistill.tools import import_model

  import_model.import_model(
    _place("from", _required("from")),
    FLAGS.settings and _place("settings", FLAGS.settings),
    _place("out", _required("out")),
  )


def _export() -> None:
  from diffdistill.tools import export

  export.export(
    _workdir(),
    FLAGS.round,
    _one_num_steps("export"),
    FLAGS.format,
    _place("out", _required("out")),
  )


def _evaluate() -> None:
  from diffdistill.tools import evaluate

  evaluate.evaluate(
    _workdir(),
    FLAGS.num_images,
    _whole_numbers("num_steps"),
    FLAGS.inception and str(_place("inception", FLAGS.inception)),
    FLAGS.reference and str(_place("reference", FLAGS.reference)),
  )


def _run() -> None:
  from diffdistill.tools import time_limit

  _required("config")
  if FLAGS.minutes and 60 * FLAGS.minutes <= FLAGS.reserve:
    raise UsageError(
      f"--minutes is {FLAGS.minutes:g}, which is no more than"
      f" --reserve={FLAGS.reserve} seconds; pass more minutes"
    )
  time_limit.run(
    _config_words(sys.argv[2:]),
    _workdir(),
    _place("results", FLAGS.results),
    minutes=FLAGS.minutes,
    reserve=FLAGS.reserve,
    cpu=FLAGS.cpu,
  )


def _config_words(arguments: Sequence[str]) -> list[str]:
  """The words of --config and of its overrides, for another command."""
  found: list[str] = []
  words = iter(arguments)
  for word in words:
    if re.match(r"--?config[.=]|--?config$", word):
      name, _, value = word.lstrip("-").partition("=")
      found.append(f"--{name}={value if '=' in word else next(words, '')}")
  return sorted(found, key=lambda word: not word.startswith("--config="))


def _carry() -> None:
  from diffdistill.tools import carry

  carry.carry(_workdir(), _place("out", _required("out")))


def _report() -> None:
  from diffdistill.tools import report

  workdirs = places("--workdir", _required("workdir"))
  report.report(workdirs, _place("out", FLAGS.out or "report.html"))


def _plan() -> None:
  from diffdistill.tools import plan

  plan.plan(_required("config"), _required("topology"), FLAGS.json)


def _benchmark() -> None:
  from diffdistill.tools import benchmark

  benchmark.benchmark(
    _required("config"),
    FLAGS.stage,
    FLAGS.num_updates,
    _whole_numbers("num_steps") or (1, 2, 4, 8),
    FLAGS.profile and Path(_place("profile", FLAGS.profile)),
  )


def _list() -> None:
  from diffdistill.tools import list_all

  list_all.list_all()


COMMANDS = {
  "train": _train,
  "sample": _sample,
  "evaluate": _evaluate,
  "run": _run,
  "carry": _carry,
  "report": _report,
  "pack": _pack,
  "import": _import,
  "export": _export,
  "plan": _plan,
  "benchmark": _benchmark,
  "list": _list,
}
HOSTS = (
  "multihost",
  "expect_devices",
  "coordinator",
  "num_processes",
  "process_id",
)
# The flags that each command reads; another one is refused, not ignored.
READS = {
  "train": ("config", "workdir", *HOSTS),
  "sample": (
    "workdir",
    "round",
    "num_images",
    "num_steps",
    "seed",
    "label",
    "guidance",
    "interpolate",
    "out",
    *HOSTS,
  ),
  "evaluate": (
    "workdir",
    "num_images",
    "num_steps",
    "inception",
    "reference",
    *HOSTS,
  ),
  "run": ("config", "workdir", "minutes", "reserve", "results", "cpu"),
  "carry": ("workdir", "out"),
  "report": ("workdir", "out"),
  "pack": ("config", "out"),
  "import": ("from", "settings", "out"),
  "export": ("workdir", "round", "num_steps", "format", "out"),
  "plan": ("config", "topology", "json"),
  "benchmark": ("config", "stage", "num_updates", "num_steps", "profile"),
  "list": (),
}


class UsageError(Exception):
  """A flag that is missing or cannot be read."""


def _required(name: str):
  value = FLAGS[name].value
  if value is None or value in ("", [""]):
    raise UsageError(f"--{name} is missing; see diffdistill help")
  return value


def _workdir() -> epath.Path:
  first, *others = _required("workdir")
  if others:
    raise UsageError(
      f"--workdir is given {len(others) + 1} times; pass it once"
    )
  return _place("workdir", first)


def _place(flag: str, path: str) -> epath.Path:
  return place(f"--{flag}", path)


def _with_files(arguments: Sequence[str]) -> list[str]:
  """The arguments, in which --config names a file: no recipe, and no ~."""
  words: list[str] = []
  for word in arguments:
    flag, _, value = word.partition("=")
    if flag != word and flag in ("--config", "-config"):
      word = f"{flag}={recipes.located(value)}"
    elif words and words[-1] in ("--config", "-config"):
      word = recipes.located(word)
    words.append(word)
  return words


def _one_num_steps(command: str) -> int | None:
  """Of a sampler, for a command that takes no list of them."""
  steps = _whole_numbers("num_steps")
  if steps is not None and len(steps) != 1:
    raise UsageError(f"--num_steps is {FLAGS.num_steps}; {command} takes one")
  return steps[0] if steps else None


def _whole_numbers(name: str) -> tuple[int, ...] | None:
  values = getattr(FLAGS, name)
  if values is None:
    return None
  if not values or not all(re.fullmatch(r"0*[1-9]\d{0,17}", v) for v in values):
    raise UsageError(
      f"--{name} is {brief(','.join(values))}; pass positive whole numbers:"
      " 1,2,4"
    )
  return tuple(int(v) for v in values)


def _flag_error(error: Exception, arguments: Sequence[str]) -> str:
  """What absl, ml_collections or a config file say, in one plain line."""
  # One may hold another, and str() would quote the text of a KeyError.
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  lines = message.strip().splitlines() or [""]
  if isinstance(error, flags.UnrecognizedFlagError):
    return f"--{error.flagname} is no flag; see diffdistill help"
  for flag in (argument.split("=")[0] for argument in arguments):
    if "config." in flag and lines[0].strip("'\"") in flag.split("."):
      close = re.search(r'Did you mean "(.+?)"', lines[-1])
      remedy = f"did you mean {close[1]}?" if close else "add it to its file"
      return f"{flag} is no field of the config; {remedy}"
  # A value of several lines is all of the flag.
  flag, _, problem = " ".join(lines).removeprefix("flag ").partition(": ")
  for unreadable, remedy in (
    ("invalid literal for int", "pass a whole number"),
    ("could not convert string to float", "pass a number"),
    ("Non-boolean argument", "pass True or False"),
  ):
    if unreadable in problem:
      return f"{flag} cannot be read; {remedy}"
  if problem.startswith("Error whilst parsing config file"):
    # A traceback follows; its last line is "ValueError: what is wrong".
    return f"{flag}: {lines[-1].partition(': ')[2]}"
  if isinstance(error, flags.Error):
    return message
  return (
    f"--config cannot be read ({type(error).__name__}: {lines[-1].strip()});"
    " pass a recipe, such as digits:progressive, or FILE.py:RECIPE"
  )


def _refuse(error: Exception | str, status: int) -> int:
  message = line_of(error)
  if not jax.distributed.is_initialized():
    print(f"diffdistill: {message}", file=sys.stderr)
    return status
  # The first says what all have to say.
  if hosts.unanimous(message):
    if hosts.is_first():
      print(f"diffdistill: {message}", file=sys.stderr)
    return status
  _end(message, status)


def _fail() -> NoReturn:
  """Ends one of several processes that failed, or has lost another."""
  lost = hosts.lost_process()
  if lost is None:
    traceback.print_exc()
  what = "failed" if lost is None else f"process {lost} is lost"
  signals.end(f"{what}; {GO_ON}", 70)


def _end(message: str, status: int) -> NoReturn:
  """Ends this process at once: the usual end waits for the others."""
  print(
    f"diffdistill: process {jax.process_index()} of {jax.process_count()}:"
    f" {message}",
    file=sys.stderr,
    flush=True,
  )
  os._exit(status)

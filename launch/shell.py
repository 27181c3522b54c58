"""What the launchers share: refusals, commands, waiting, what is trained.

Standard library only: a launcher runs where diffdistill is not installed.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import names

_HERE = pathlib.Path(__file__).parent
# Copied to every host, beside each other.
HOST_FILES = (_HERE / "host.sh", _HERE.parent / "requirements.txt")
# NAME=VALUE of --env, whose values no line of the launcher's own may show.
_SECRETS: list[str] = []


class RefusalError(Exception):
  """What a person must mend: what is wrong, the value, what to do instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """A command that has ended."""

  status: int
  output: str
  errors: str

  @property
  def reason(self) -> str:
    """The last error that it named, or else its last line."""
    lines = (self.errors.strip() or self.output.strip()).splitlines()
    # gcloud says what to run after its error.
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [f"exit status {self.status}"])[-1].strip()


def call(command: Sequence[str], text: str | None = None) -> Done:
  """Runs a command to its end; `text` is its standard input."""
  done = subprocess.run(
    command,
    input=text,
    stdin=subprocess.DEVNULL if text is None else None,
    capture_output=True,
    text=True,
    check=False,
  )
  return Done(status=done.returncode, output=done.stdout, errors=done.stderr)


def follow(command: Sequence[str]) -> int:
  """Prints numbered lines as they come, each once; the last one's number.

  gcloud runs a command again where its connection breaks.
  """
  last = 0
  with subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    text=True,
    errors="replace",
  ) as process:
    assert process.stdout is not None
    try:
      for line in process.stdout:
        number, _, words = line.partition(":")
        if number.isdecimal() and int(number) > last:
          last = int(number)
          print(words, end="", flush=True)
    except BaseException:
      process.kill()
      raise
  return last


def say(line: str) -> None:
  """A line about the launcher's own progress, apart from the run's log."""
  line = names.without_values(line, _SECRETS)
  print(f"launch: {line}", file=sys.stderr, flush=True)


def pause(poll_seconds: float, times: int) -> None:
  """Waits twice as long each time, up to twenty polls."""
  time.sleep(poll_seconds * min(2**times, 20))


def need(program: str, remedy: str) -> None:
  """Refuses where a program is missing."""
  if shutil.which(program) is None:
    raise RefusalError(f"{program} is not on PATH; {remedy}")


def join(command: Sequence[str]) -> str:
  """A command as a line for bash, with no more quotes than it needs."""
  return " ".join(map(_quote, command))


def _quote(word: str) -> str:
  flag = re.match(r"--[\w-]+=", word)
  if flag:
    return flag[0] + _quote(word[flag.end() :])
  if re.fullmatch(r"[\w@%+=:,./-]+", word):
    return word
  # Within the single quotes of an outer command, these stay readable.
  return f'"{word}"' if not re.search(r'["$`\\!]', word) else shlex.quote(word)


def shown(path: str | pathlib.Path) -> str:
  """A path as a person at this prompt would write it."""
  return os.path.relpath(path)


class Parser(argparse.ArgumentParser):
  """Flags, with refusals of one line, and the flags that every launcher has."""

  def __init__(self, description: str):
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    add = self.add_argument
    add("--name", required=True, help="of the run in the cloud")
    add("--config", required=True, help="configs/imagenet64.py:progressive")
    add("--workdir", required=True, help="a bucket: gs://bucket/runs/name")
    add(
      "--extras",
      default="tfds,gcs",
      help="of diffdistill, to install; gcs is for the workdir",
    )
    add(
      "--env",
      action="append",
      default=[],
      metavar="NAME=VALUE",
      help="for the run, such as TFDS_DATA_DIR=gs://bucket/tfds; repeat",
    )
    add("--spot", action="store_true", help="cheaper; can be taken away")
    add("--keep", action="store_true", help="delete nothing at the end")
    add(
      "--dry_run",
      action="store_true",
      help="print what would be done, without the values of --env",
    )
    add(
      "--poll_seconds",
      type=float,
      default=15.0,
      help="between looks, at first; twenty times that at most",
    )

  def error(self, message: str):
    self.exit(2, f"launch: {message}; see --help\n")

  def read(self) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides of the config: --config.x=y."""
    flags, overrides = self.parse_known_args()
    for override in overrides:
      if not re.fullmatch(r"--config\.[\w.]+=.*", override):
        # Without its value, which a wrong --env may have.
        name = override.partition("=")[0]
        self.error(f"{name!r} is no flag; overrides are --config.x=y")
    complaint = names.complaint(flags)
    if complaint:
      raise RefusalError(complaint)
    if not re.fullmatch(r"gs://[^/\s]+/\S*[^/\s]", flags.workdir):
      raise RefusalError(
        f"--workdir is {flags.workdir!r}; pass a folder of a bucket, which all"
        " hosts reach and which outlives them: gs://bucket/runs/name"
      )
    if flags.dry_run:
      flags.env = names.masked(flags.env)
    else:
      _SECRETS.extend(flags.env)
    return flags, overrides


def train_command(
  flags: argparse.Namespace,
  overrides: Sequence[str],
  devices: int,
  hosts: int,
) -> list[str]:
  """The command that every host runs; run again, it resumes."""
  return [
    *(["env", *flags.env] if flags.env else []),
    "diffdistill",
    "train",
    f"--config={flags.config}",
    f"--workdir={flags.workdir}",
    *overrides,
    f"--expect_devices={devices}",
    *(["--multihost"] if hosts > 1 else []),
  ]


def requirements(package: str, extras: str, jax_extra: str) -> list[str]:
  """What is installed on a host: JAX for it, and diffdistill at one version.

  Args:
    package: git+https://...@REF, or the path of a wheel that lies beside
      host.sh on the host.
    extras: of diffdistill, such as "tfds,gcs"; may be empty.
    jax_extra: such as "tpu".
  """
  name = f"diffdistill[{extras}]" if extras else "diffdistill"
  wheel = pathlib.Path(package)
  if wheel.suffix == ".whl":
    if not wheel.is_file():
      raise RefusalError(
        f"--package is {package!r}, which is no file; build a wheel"
      )
    return [f"jax[{jax_extra}]", f"{name} @ ./{wheel.name}"]
  if not re.fullmatch(r"git\+(https|ssh)://\S+[^/\s]+@[\w./-]+", package):
    raise RefusalError(
      f"--package is {package!r}; pass git+https://HOST/REPOSITORY@REF with a"
      " tag or a commit, so that every restart trains the same code, or a wheel"
    )
  return [f"jax[{jax_extra}]", f"{name} @ {package}"]


def finally_do(end: Callable[[], None], work: Callable[[], None]) -> None:
  """Does the work and then the end, also where it is refused or interrupted."""
  try:
    work()
  except RefusalError as refusal:
    try:
      end()
    except RefusalError as left:
      raise RefusalError(f"{refusal}; and {left}") from left
    raise
  except KeyboardInterrupt:
    end()
    raise
  end()


def guard(main: Callable[[], int]) -> int:
  """The exit status of a launcher: 1 and one line where it is refused."""
  try:
    return main()
  except RefusalError as refusal:
    say(" ".join(str(refusal).split()))
    return 1
  except KeyboardInterrupt:
    say("interrupted")
    return 130

"""What the compiler of a machine makes of a program: memory, traffic, messages.

The TPU compiler takes a minute for a large network until it has laid out the
memory, and ten more for the machine's instructions, which change nothing of
what is asked here. So it runs in a process of its own (compiler.py), which is
ended as soon as the layout is written down. What was found is kept on disk.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from diffdistill.fields import Fields
from diffdistill.planning import hlo
from diffdistill.planning.hlo import Collective, read_program
from diffdistill.planning.topology import Topology
from diffdistill.system import signals
from diffdistill.system.files import read_json, write_json

_POLL_SECONDS = 0.2
_TOTAL = re.compile(r"Total bytes: (\d+)")
# "... (16.18G) exceeds available HBM (15.75G) ...", in a compiler's refusal.
_SIZE = re.compile(r"([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class CompilerError(Exception):
  """The compiler failed, not for want of memory; the message says how."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A program as one device runs it.

  Args:
    memory: bytes of arguments and temporaries; of a refused program, what its
      compiler says that it would take, 0 where it does not say.
    refused: whether the compiler found no room for it.
    traffic, collectives: see hlo.py; nothing where it was refused.
    seconds: that it took.
  """

  memory: float
  refused: bool
  traffic: float
  collectives: Mapping[str, Collective]
  seconds: float


def compile_program(
  name: str,
  traced: jax.stages.Traced,
  config: Fields,
  topology: Topology,
  cache: Path,
  say: Callable[[str], None],
) -> Compiled:
  """A program, compiled for a topology; from the cache where it is there.

  Args:
    name: of the recipe's program.
    traced: the program.
    config: of the recipe, for the process that compiles.
    topology: that its arguments lie on.
    cache: a folder, made when needed.
    say: is told of compilations, which take long.

  Raises:
    CompilerError: where it fails for another reason than memory.
  """
  lowered = traced.lower()
  # What is kept is what hlo.py read, so another hlo.py asks again.
  key = hashlib.sha256(Path(hlo.__file__).read_bytes())
  for part in (topology.name, topology.compiler, jax.__version__):
    key.update(part.encode() + b"\n")
  key.update(lowered.as_text().encode())
  path = cache / f"{key.hexdigest()[:32]}.json"
  stored = _stored(path, say)
  if stored is not None:
    return stored
  say(f"compiling {name} for {topology.name} ...")
  start = time.monotonic()
  if topology.is_here:
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    text, refused = compiled.as_text(), False
  else:
    text, size, refused = _elsewhere(name, config, topology.name)
  seconds = time.monotonic() - start
  read = read_program(text, len(topology.devices)) if text else None
  result = Compiled(
    memory=float(size),
    refused=refused,
    traffic=read.traffic if read else 0.0,
    collectives=read.collectives if read else {},
    seconds=round(seconds, 1),
  )
  say(f"compiled {name} in {seconds:.0f} s")
  try:
    write_json(path, dataclasses.asdict(result))
  except OSError as error:
    say(
      f"{path} is not kept ({error.strerror}); it is compiled again next time"
    )
  return result


def _stored(path: Path, say: Callable[[str], None]) -> Compiled | None:
  """What was kept of a program; None if nothing, or if that is damaged."""
  if not path.exists():
    return None
  try:
    fields = read_json(path)
    messages = fields.pop("collectives").items()
    collectives = {kind: Collective(**values) for kind, values in messages}
    return Compiled(**fields, collectives=collectives)
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    say(f"{path} cannot be read ({error}); it is compiled again")
    return None


def _elsewhere(
  name: str, config: Fields, topology: str
) -> tuple[str, float, bool]:
  """(text, bytes of memory, whether refused) from a process that compiles."""
  request = {"name": name, "config": config, "topology": topology}
  with tempfile.TemporaryDirectory() as folder:
    dump = Path(folder)
    (dump / "request.json").write_text(json.dumps(request))
    forget = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    with signals.unfinished(forget), _compiler(dump) as process:
      text = None
      while text is None and process.poll() is None:
        time.sleep(_POLL_SECONDS)
        text = _laid_out(dump)
      text = text or _laid_out(dump)
    if text is not None:
      (report,) = dump.glob("*.after_optimizations-memory-usage-report.txt")
      found = _TOTAL.search(report.read_text())
      return text, float(found[1]) if found else 0.0, False
    errors = (dump / "errors.txt").read_text()
    if "RESOURCE_EXHAUSTED" not in errors:
      last = errors.strip().splitlines()[-1:] or ["it said nothing"]
      raise CompilerError(f"compiling {name} for {topology}: {last[0][:300]}")
    return "", _wanted(errors), True


@contextlib.contextmanager
def _compiler(dump: Path) -> Iterator[subprocess.Popen[Any]]:
  """The process that compiles, for as long as it is waited for."""
  with (dump / "errors.txt").open("w") as errors:
    process = subprocess.Popen(
      [sys.executable, "-m", "diffdistill.planning.compiler", str(dump)],
      stdin=subprocess.DEVNULL,
      stdout=errors,
      stderr=errors,
    )
    try:
      with signals.unfinished(process.kill):
        yield process
    finally:
      process.kill()
      process.wait()


def _laid_out(dump: Path) -> str | None:
  """The program's text, once its memory is laid out and all is written."""
  for path in dump.glob("*.after_optimizations_after_buffer_assignment.txt"):
    text = path.read_text()
    # The first to run comes last.
    _, entry, last = text.rpartition("\nENTRY ")
    if entry and last.rstrip().endswith("\n}"):
      return text
  return None


def _wanted(errors: str) -> float:
  """The largest amount that a refusal names."""
  return max(
    (float(n) * _UNITS[unit] for n, unit in _SIZE.findall(errors)), default=0.0
  )

"""Compiles a program for a machine and reads its memory and messages.

For a large network, the TPU compiler needs a minute to assign the memory, and
ten more to write the machine's instructions, which a plan does not need. So the
compiler runs in its own process (compiler.py). That process is stopped once the
text of the program, with its memory, is on disk. Results are kept in a cache on
disk.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from diffdistill.fields import Fields
from diffdistill.planning import fusions, hlo, hlo_text
from diffdistill.planning.hlo import Collective, read_program
from diffdistill.planning.topology import Topology
from diffdistill.system import own_python, signals
from diffdistill.system.files import read_json, write_json

_POLL_SECONDS = 0.2
_TOTAL = re.compile(r"Total bytes: (\d+)")
# Finds the sizes in a refusal: "... (16.18G) exceeds available HBM (15.75G)
# ...".
_SIZE = re.compile(r"([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class CompilerError(Exception):
  """The compiler failed for a reason other than too little memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """A compiled program, as one device runs it.

  Args:
    memory: bytes of arguments and temporaries. For a refused program, the bytes
      that the compiler names in its refusal; 0 if it names none.
    refused: whether the compiler found too little memory for the program.
    traffic, collectives: see hlo.py; empty for a refused program.
    seconds: the seconds of the compilation.
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
  """Compiles a program for a topology, or takes the result from the cache.

  Args:
    name: the name of the recipe's program.
    traced: the program.
    config: the config of the recipe; the process that compiles builds it again.
    topology: the devices of the program's arguments.
    cache: the folder of the cache; it is made if needed.
    say: receives a line before and after each compilation, which takes long.

  Raises:
    CompilerError: if the compiler fails for another reason than memory.
  """
  lowered = traced.lower()
  # The cache holds numbers that these files have computed, so its keys depend
  # on their sources.
  key = hashlib.sha256()
  for module in (hlo, hlo_text, fusions):
    key.update(Path(module.__file__).read_bytes())
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
  """Reads the cached result of a program; None if it is missing or damaged."""
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
  """Compiles the program in another process.

  Returns its text, the bytes of memory that it needs, and whether the compiler
  refused it.
  """
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
  """Starts the process that compiles, and stops it at the end."""
  with (dump / "errors.txt").open("w") as errors:
    process = subprocess.Popen(
      [*own_python.command("diffdistill.planning.compiler"), str(dump)],
      env=own_python.environment(),
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
  """Reads the program's text; None until the compiler has written all of it."""
  for path in dump.glob("*.after_optimizations_after_buffer_assignment.txt"):
    text = path.read_text()
    # The text is complete when it has the entry computation, which comes last.
    _, entry, last = text.rpartition("\nENTRY ")
    if entry and last.rstrip().endswith("\n}"):
      return text
  return None


def _wanted(errors: str) -> float:
  """Returns the largest number of bytes that a compiler's refusal names."""
  return max(
    (float(n) * _UNITS[unit] for n, unit in _SIZE.findall(errors)), default=0.0
  )

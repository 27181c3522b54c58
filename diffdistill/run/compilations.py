"""Keeps compiled programs on disk, so that a later start need not compile them.

JAX asks a cache for each program before it compiles it. This is the cache that
JAX uses if nobody has set another: it writes each file whole or not at all,
checks it by a digest when it is read, and never raises an error. A program that
cannot be read or written is compiled as if there were no cache. JAX has no
public name for a cache of one's own. If a JAX lacks the name that this file
uses, JAX's own cache keeps the programs in the same folder.

JAX's own variables win: JAX_COMPILATION_CACHE_DIR names another cache,
JAX_ENABLE_COMPILATION_CACHE=false turns this one off, and
JAX_COMPILATION_CACHE_MAX_SIZE limits its bytes. JAX looks for a program by its
operations, the flags and versions of the compiler, and the kind and features of
the devices. So a kept program computes the same numbers as a new one. If
several processes train together, only the first one writes. On CPUs JAX looks
for another program in each process, so only the first one finds its programs.

A kept program is machine code that runs when it is loaded: whoever can write
into the folder can run code. So commands use the folder of the user, and the
folder beside the workdir only where the machines of a run come and go.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from diffdistill.system import hosts
from diffdistill.system.files import (
  in_bucket,
  matching,
  read_bytes,
  write_atomically,
)

FOLDER = "compilations"
# The most bytes in the user's folder; the programs used last are kept.
MOST_BYTES = 4 * 2**30
# JAX's own least time is one second, but a start has many small programs.
LEAST_SECONDS = 0.1
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Compilations:
  """Compiled programs in a folder, by the key that JAX gives each of them.

  Args:
    folder: the folder, on a disk or in a bucket; it is made when needed.
    say: receives one line if programs cannot be kept, or if one is damaged.
  """

  def __init__(self, folder: epath.Path, say: Callable[[str], None]):
    self._folder = folder
    self._say = say
    self._names: set[str] | None = None
    self._broken = False

  def get(self, key: str) -> bytes | None:
    """Returns a kept program; None if there is none, or it is damaged."""
    try:
      if key not in self._listed():
        return None
      data = read_bytes(self._folder / key)
    except FileNotFoundError:
      return None
    # A bucket's library raises errors of many kinds, and none may end a run.
    except Exception as error:
      self._give_up(error)
      return None
    digest, program = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(program).digest() != digest:
      self._say(f"{self._folder / key} is damaged; it is compiled again")
      self._listed().discard(key)
      return None
    if not in_bucket(self._folder):
      # The time of the last use decides which programs stay.
      with contextlib.suppress(OSError):
        os.utime(self._folder / key)
    return program

  def put(self, key: str, value: bytes) -> None:
    """Keeps a program; says once if that fails."""
    if self._broken:
      return
    try:
      if key in self._listed():
        return
      data = hashlib.sha256(value).digest() + value
      write_atomically(self._folder / key, data, writer=str(os.getpid()))
      self._listed().add(key)
    except Exception as error:
      self._give_up(error)

  def _listed(self) -> set[str]:
    """The kept programs. Listing once saves a bucket a request a program."""
    if self._names is None:
      self._names = {path.name for path in matching(self._folder, "*")}
    return self._names

  def _give_up(self, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    reason = " ".join(reason.split())[:200] or type(error).__name__
    if not self._broken:
      self._say(
        f"compiled programs are not kept in {self._folder} ({reason}); set"
        f" {_FOLDER} to another folder"
      )
    self._names, self._broken = set(), True


def keep(workdir: epath.Path | None = None) -> None:
  """Makes JAX keep compiled programs, unless JAX's own variables say otherwise.

  Call it before anything is compiled. Only the first call has an effect.

  Args:
    workdir: the workdir whose machines come and go: programs are kept beside
      it. None means the user's own folder.
  """
  folder, place = _folder(workdir), _place_in_jax()
  if _without() or folder is None or getattr(place, "_cache", None) is not None:
    return
  if workdir is None:
    trim(Path(folder), _most_bytes())
  if place is None:
    # From here on `_without` tells that programs are kept.
    jax.config.update(_FOLDER.lower(), str(folder))
  else:
    place._cache = Compilations(folder, _say)
  if _SECONDS not in os.environ:
    jax.config.update(_SECONDS.lower(), LEAST_SECONDS)


def described() -> str:
  """A text that says where this process would keep compiled programs."""
  folder = _folder(None)
  if folder is None:
    return f"not kept, as this user has no home folder; set {_FOLDER}"
  if _setting("jax_compilation_cache_dir") == str(folder):
    return f"kept in {folder}"
  return _without() or f"kept in {folder}"


def trim(folder: Path, most: int) -> None:
  """Removes the files that were not used for longest, until `most` bytes."""
  try:
    files = [(path, path.stat()) for path in folder.iterdir()]
  except OSError:
    return
  files.sort(key=lambda file: file[1].st_mtime, reverse=True)
  total = 0
  for path, stat in files:
    total += stat.st_size
    if total > most:
      with contextlib.suppress(OSError):
        path.unlink()


def _place_in_jax() -> Any:
  """The module in which JAX looks for a `_cache`; None if JAX has none."""
  try:
    from jax._src import compilation_cache
  except ImportError:
    return None
  return compilation_cache if hasattr(compilation_cache, "_cache") else None


def _without() -> str:
  """A text that says why JAX's variables leave this cache out; "" if not."""
  if not _setting("jax_enable_compilation_cache"):
    return "not kept, as JAX_ENABLE_COMPILATION_CACHE says"
  # An empty name is how JAX's own variable turns its cache off.
  theirs = _setting("jax_compilation_cache_dir")
  if theirs is not None:
    where = f"kept in {theirs}" if theirs else "not kept"
    return f"{where}, as {_FOLDER} says"
  if _most_bytes() == 0:
    return "not kept, as JAX_COMPILATION_CACHE_MAX_SIZE says"
  return ""


def _folder(workdir: epath.Path | None) -> epath.Path | None:
  """The folder beside a workdir, or the user's; None without a home folder."""
  if workdir is not None:
    beside = workdir.parent
    # Nothing is beside the root of a bucket, such as gs://bucket.
    if beside.as_posix().endswith(("://", ":/")):
      beside = workdir
    return beside / f".{FOLDER}"
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  # In a container, a user may have no home folder.
  if caches.startswith("~"):
    return None
  return epath.Path(caches) / "diffdistill" / FOLDER


def _most_bytes() -> int:
  most = _setting("jax_compilation_cache_max_size")
  return MOST_BYTES if most == -1 else most


def _setting(name: str) -> Any:
  return getattr(jax.config, name)


def _say(message: str) -> None:
  if hosts.is_first():
    sys.stderr.write(f"diffdistill: {message}\n")

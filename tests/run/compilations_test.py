"""Compiled programs are kept on disk, and a bad disk never stops a run."""

import os
import socket
import subprocess
import sys

import pytest
from etils import epath
from jax._src import compilation_cache

from diffdistill.run import compilations
from diffdistill.run.compilations import Compilations, trim

VARIABLES = (
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_ENABLE_COMPILATION_CACHE",
  "JAX_COMPILATION_CACHE_MAX_SIZE",
  "XDG_CACHE_HOME",
)
PROGRAM = """
import hashlib, os, sys
import jax, numpy as np
from etils import epath
from diffdistill.run import compilations
from diffdistill.system import hosts

hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name.endswith("cache_hits"))
)
port, process, place, without = [*sys.argv[1:], *[""] * 4][:4]
if port:
  hosts.join(f"localhost:{port}", 2, int(process))
if without:
  compilations._place_in_jax = lambda: None
compilations.keep(epath.Path(place) if place else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
x = np.linspace(-1, 1, 4 * 6 * 6 * 3, dtype=np.float32).reshape(4, 6, 6, 3)
w = np.linspace(-2, 1, 3 * 3 * 3 * 8, dtype=np.float32).reshape(3, 3, 3, 8)

def loss(w):
  y = jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return (jax.nn.swish(y) ** 2).mean()

# All devices of all processes compute together.
mesh = jax.make_mesh((jax.device_count(),), ("data",))
everywhere = jax.NamedSharding(mesh, jax.P())
gradient = jax.jit(
  jax.grad(loss), in_shardings=everywhere, out_shardings=everywhere
)(hosts.place(w, everywhere))
bits = np.asarray(gradient.addressable_data(0)).tobytes()
print(hashlib.sha256(bits).hexdigest(), sum(hits), compilations.described())
"""


@pytest.fixture
def kept(tmp_path):
  """Opens the cache in a folder; `said` has the lines that it reports."""
  said = []

  def make(folder=tmp_path / "kept"):
    return Compilations(epath.Path(folder), said.append)

  make.said = said
  return make


def test_a_kept_program_is_found_by_the_next_start(kept):
  first = kept()
  assert first.get("jit_f-1") is None
  first.put("jit_f-1", b"program")
  assert first.get("jit_f-1") == b"program"
  assert kept().get("jit_f-1") == b"program"
  assert kept.said == []


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    lambda data: bytes([data[0] ^ 1]) + data[1:],
  ],
)
def test_a_damaged_program_is_named_and_kept_anew(kept, tmp_path, damage):
  kept().put("jit_f-1", b"program")
  path = tmp_path / "kept" / "jit_f-1"
  path.write_bytes(damage(path.read_bytes()))
  cache = kept()
  assert cache.get("jit_f-1") is None
  assert kept.said == [f"{path} is damaged; it is compiled again"]
  cache.put("jit_f-1", b"program")
  assert kept().get("jit_f-1") == b"program"


def test_a_disk_that_cannot_be_written_is_reported_once(kept, read_only_disk):
  cache = kept(read_only_disk / "kept")
  for key in ("a", "b"):
    cache.put(key, b"program")
    assert cache.get(key) is None
  (line,) = kept.said
  assert "are not kept" in line
  assert "(Read-only file system); set JAX_COMPILATION_CACHE_DIR" in line


def test_a_full_disk_is_reported_once_and_keeps_what_it_has(kept, small_disk):
  cache = kept(small_disk)
  cache.put("small", b"program")
  for key in ("large", "larger"):
    cache.put(key, bytes(10**6))
  (line,) = kept.said
  assert "(No space left on device)" in line
  assert kept(small_disk).get("small") == b"program"
  assert [path.name for path in small_disk.iterdir()] == ["small"]


def test_a_file_in_place_of_the_folder_and_lost_programs_raise_nothing(
  kept, tmp_path
):
  (tmp_path / "file").write_text("")
  cache = kept(tmp_path / "file")
  assert cache.get("a") is None
  cache.put("a", b"program")
  assert len(kept.said) == 1
  cache = kept()
  cache.put("a", b"program")
  (tmp_path / "kept" / "a").unlink()
  assert cache.get("a") is None
  assert len(kept.said) == 1


def test_the_programs_used_last_stay(kept, tmp_path):
  folder = tmp_path / "kept"
  for age, name in enumerate("abc"):
    kept().put(name, bytes(100))
    os.utime(folder / name, (1000 - age, 1000 - age))
  assert kept().get("c") == bytes(100)  # c is now the last one in use
  trim(folder, 300)
  assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
  trim(tmp_path / "none", 0)


@pytest.fixture
def start(tmp_path, children):
  """Starts a process that keeps its programs."""

  def run(*arguments):
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    return children.start(
      *(sys.executable, "-W", "error", "-c", PROGRAM, *arguments),
      env={**clean, "XDG_CACHE_HOME": str(tmp_path)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return run


@pytest.fixture
def ends(children):
  """Waits for a process; gives its bits, its hits, its place and its errors."""

  def wait(process):
    done = children.finish(process)
    assert done.returncode == 0, done.stderr
    bits, hits, place = done.stdout.split(" ", 2)
    return bits, int(hits), place.strip(), done.stderr

  return wait


def test_a_kept_program_computes_the_same_bits_in_silence(
  start, ends, tmp_path
):
  folder = tmp_path / "diffdistill" / "compilations"
  bits, hits, place, said = ends(start())
  assert (hits, place, said) == (0, f"kept in {folder}", "")
  assert any(path.name.startswith("jit_loss") for path in folder.iterdir())
  again, hits, _, said = ends(start())
  assert (again, said) == (bits, "")
  assert hits > 0
  for path in folder.iterdir():
    path.write_bytes(path.read_bytes()[:-1])
  third, hits, _, said = ends(start())
  assert (third, hits) == (bits, 0)
  assert all("is damaged" in line for line in said.splitlines())


def test_a_jax_without_the_private_name_keeps_programs_by_itself(
  start, ends, tmp_path, monkeypatch
):
  folder = tmp_path / "diffdistill" / "compilations"
  first, second = (ends(start("", "", "", "without")) for _ in range(2))
  for bits, _, place, said in (first, second):
    assert (bits, place, said) == (first[0], f"kept in {folder}", "")
  assert first[1] == 0
  assert second[1] > 0
  monkeypatch.delattr(compilation_cache, "_cache")
  assert compilations._place_in_jax() is None


def test_two_processes_share_the_programs_beside_their_workdir(
  start, ends, tmp_path
):
  def both():
    with socket.socket() as sock:
      sock.bind(("localhost", 0))
      port = str(sock.getsockname()[1])
    workdir = str(tmp_path / "run")
    return [ends(p) for p in [start(port, str(i), workdir) for i in range(2)]]

  first, second = both(), both()
  assert (tmp_path / ".compilations").is_dir()
  assert len({bits for bits, *_ in first + second}) == 1
  assert [hits for _, hits, _, _ in first] == [0, 0]
  # JAX's key of a program for CPUs differs between processes.
  assert second[0][1] > 0
  assert {said for *_, said in first + second} == {""}


@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    ("jax_enable_compilation_cache", False, "not kept, as JAX_ENABLE_COMPIL"),
    ("jax_compilation_cache_dir", "/mine", "kept in /mine, as JAX_COMPILATI"),
    ("jax_compilation_cache_dir", "", "not kept, as JAX_COMPILATION_CACHE_D"),
    ("jax_compilation_cache_max_size", 0, "not kept, as JAX_COMPILATION_CAC"),
  ],
)
def test_the_variables_of_jax_win(monkeypatch, name, value, said):
  settings = type("Settings", (), {})()
  settings.jax_enable_compilation_cache = True
  settings.jax_compilation_cache_dir = None
  settings.jax_compilation_cache_max_size = -1
  monkeypatch.setattr(compilations.jax, "config", settings)
  monkeypatch.setenv("XDG_CACHE_HOME", "/c")
  assert compilations.described() == "kept in /c/diffdistill/compilations"
  setattr(settings, name, value)
  assert compilations.described().startswith(said)
  before = compilation_cache._cache
  compilations.keep()
  assert compilation_cache._cache is before


def test_a_user_without_a_home_folder_keeps_nothing(monkeypatch):
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  monkeypatch.setattr(compilations, "_without", lambda: "")
  assert compilations.described().startswith("not kept, as this user has no")
  compilations.keep()


def test_hosts_share_a_folder_beside_the_workdir():
  for workdir, folder in (
    ("/shared/runs/a", "/shared/runs/.compilations"),
    ("gs://bucket/runs/a", "gs://bucket/runs/.compilations"),
    ("gs://bucket", "gs://bucket/.compilations"),
  ):
    assert str(compilations._folder(epath.Path(workdir))) == folder

"""Checks which room may import which, and which rooms may use a library.

A room is a folder of the package.
"""

import ast
import functools
import os
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "diffdistill"

# For each room, or each file at the top, this lists the rooms that it may
# import from.
DOORS = {
  "version": (),
  "__init__": ("version",),
  "configs": (),
  "arrays": (),
  "kinds": (),
  "ranges": (),
  "fields": ("ranges",),
  "images": ("arrays",),
  "system": (),
  "diffusion": ("arrays", "ranges"),
  "networks": ("arrays", "kinds", "ranges"),
  "denoiser": ("arrays", "diffusion", "networks"),
  "sampling": ("arrays", "diffusion", "kinds", "ranges"),
  "objectives": (
    "arrays",
    "diffusion",
    "denoiser",
    "kinds",
    "ranges",
    "sampling",
  ),
  "data": ("arrays", "images", "kinds", "ranges", "system"),
  "evaluation": (
    "arrays",
    "data.label_order",
    "images",
    "ranges",
    "sampling",
    "system",
  ),
  "training": (
    "arrays",
    "data",
    "denoiser",
    "diffusion",
    "objectives.objective",  # Only the protocol, no paper.
    "ranges",
    "sampling",
    "system",
  ),
  "interop": (
    "arrays",
    "diffusion",
    "fields",
    "networks",
    "ranges",
    "system",
  ),
  "run": (
    "version",
    "arrays",
    "configs",
    "data",
    "denoiser",
    "diffusion",
    "evaluation",
    "fields",
    "images",
    "interop",
    "networks",
    "objectives",
    "ranges",
    "sampling",
    "system",
    "training",
  ),
  "judging": (
    "arrays",
    "data",
    "diffusion",
    "evaluation",
    "images",
    "interop",
    "networks",
    "objectives",
    "run",
    "sampling",
    "system",
    "training",
  ),
  "planning": (
    "arrays",
    "evaluation",
    "fields",
    "objectives.objective",
    "run",
    "sampling",
    "system",
    "training",
  ),
  "reporting": (
    "version",
    "data",
    "evaluation",
    "fields",
    "judging",
    "planning",
    "run",
    "sampling",
    "system",
    "training",
  ),
  "tools": (
    "version",
    "arrays",
    "data",
    "diffusion",
    "evaluation",
    "fields",
    "images",
    "interop",
    "judging",
    "networks",
    "objectives",
    "planning",
    "ranges",
    "reporting",
    "run",
    "sampling",
    "system",
    "training",
  ),
  "api": (
    "evaluation",
    "judging",
    "ranges",
    "reporting",
    "run",
    "system",
    "tools",
  ),
  "cli": ("version", "ranges", "run", "system", "tools"),
  "__main__": ("cli", "system"),
}
# The package imports the names of its API only for type checkers. At run time
# it imports a name when the name is used.
LAZY = {"__init__": ("api",)}
# The link configs is added by hand, because rglob does not follow links.
FILES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").rglob("*.py")])


def name_of(path):
  return str(path.relative_to(PACKAGE))


def room_of(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def parsed(path):
  return ast.parse(path.read_text())


@functools.cache
def imports(path):
  """Lists the imports of a file as (name, whether it is inside a function)."""
  return tuple(imports_of(parsed(path)))


def imports_of(node, inside=False):
  if isinstance(node, ast.Import):
    yield from ((alias.name, inside) for alias in node.names)
  elif isinstance(node, ast.ImportFrom):
    assert node.level == 0, "relative imports hide where they lead"
    yield from ((f"{node.module}.{a.name}", inside) for a in node.names)
  inside = inside or isinstance(node, ast.FunctionDef)
  for child in ast.iter_child_nodes(node):
    yield from imports_of(child, inside)


def test_every_room_has_a_rule():
  assert {room_of(path) for path in FILES} == set(DOORS)


def test_no_rooms_import_each_other_in_a_circle():
  before = set()
  for room, doors in DOORS.items():
    assert {door.split(".")[0] for door in doors} <= before, room
    before.add(room)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_through_doors(path):
  room = room_of(path)
  for name, _ in imports(path):
    if name == "diffdistill" or name.startswith("diffdistill."):
      target = name.removeprefix("diffdistill.")
      allowed = (room, *DOORS[room], *LAZY.get(room, ()))
      assert any(f"{target}.".startswith(f"{a}.") for a in allowed), (
        f"{name_of(path)} imports {name}; {room} may import {allowed}"
      )


@pytest.mark.parametrize(
  ("library", "places"),
  [
    ("flax.linen", ("networks/",)),
    ("orbax", ("training/stored.py",)),
    ("ml_collections", ("cli/", "configs/")),
    ("absl.flags", ("cli/",)),
    ("clu", ("training/writers.py",)),
    ("wandb", ("training/writers.py",)),
    ("tensorflow", ()),
    ("tensorflow_datasets", ()),
    ("grain", ("data/",)),
    ("torch", ()),
    ("safetensors", ("interop/",)),
    ("optax", ("training/", "objectives/")),
    (
      "jax.sharding",
      (
        "training/",
        "evaluation/",
        "run/",
        "judging/",
      ),
    ),
    ("jax.experimental.pjit", ()),
  ],
)
def test_a_library_stays_in_its_room(library, places):
  homes = [
    name_of(path)
    for path in FILES
    for name, _ in imports(path)
    if f"{name}.".startswith(f"{library}.")
  ]
  assert all(home.startswith(places) for home in homes), homes
  # Each rule must be in use: a rule for a library that is not used any more
  # should be removed.
  assert bool(homes) == bool(places)


@pytest.mark.parametrize(
  "library", ["clu", "wandb", "tensorflow_datasets", "sklearn"]
)
def test_slow_or_optional_libraries_are_imported_inside_functions(library):
  for path in FILES:
    for name, inside in imports(path):
      assert inside or name.split(".")[0] != library, name_of(path)


@functools.cache
def texts(path):
  """Collects all names and all strings in a file."""
  return frozenset(texts_of(path))


def texts_of(path):
  for node in ast.walk(parsed(path)):
    if isinstance(node, ast.Name):
      yield node.id
    elif isinstance(node, ast.Attribute):
      yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value


@pytest.mark.parametrize(
  ("text", "places"),
  [
    ("FLAGS", ("cli/",)),
    ("ConfigDict", ("configs/",)),
    # This library is imported by its name as a string, inside a function.
    ("tensorflow_datasets", ("data/tfds.py", "tools/doctor.py")),
    ("pmap", ()),
    ("value_and_grad", ()),
    ("print", ("cli/", "tools/", "training/report.py")),
  ],
)
def test_a_word_stays_in_its_room(text, places):
  homes = [name_of(path) for path in FILES if text in texts(path)]
  assert all(home.startswith(places) for home in homes), homes


def test_the_commands_do_not_import_tensorflow(children):
  code = """
import importlib, pathlib, sys
import diffdistill.cli.reading
for path in pathlib.Path(diffdistill.__file__).parent.glob("tools/*.py"):
  importlib.import_module(f"diffdistill.tools.{path.stem}")
slow = {"tensorflow", "tensorflow_datasets", "clu", "wandb", "sklearn", "torch"}
print(sorted(slow & set(sys.modules)))
"""
  done = children.run(sys.executable, "-c", code, check=True)
  assert done.stdout.strip() == "[]"


def test_help_list_and_wrong_flags_do_not_import_jax(children):
  code = """
import sys
from diffdistill.cli.main import main

def run(line, *libraries):
  sys.argv = line.split()
  print(main(), sorted({*libraries} & set(sys.modules)), file=sys.stderr)

for line in ("diffdistill --version", "diffdistill", "diffdistill train -h"):
  run(line, "jax", "numpy", "absl", "etils")
for line in (
  "diffdistill list",
  "diffdistill train --config=digits:all",
  "diffdistill run --config=digits:all --workdir=x --minutes=0.1",
):
  run(line, "jax", "grain", "flax")
"""
  done = children.run(sys.executable, "-c", code, check=True)
  ends = [line for line in done.stderr.splitlines() if line[0].isdigit()]
  assert ends == ["0 []"] * 4 + ["2 []"] * 2


def test_the_package_does_not_import_jax(children):
  code = """
import sys
import diffdistill
assert {"open", "recipe", "train", "Run"} <= set(dir(diffdistill))
assert not hasattr(diffdistill, "nothing")
print(sorted({"jax", "grain", "flax", "numpy"} & set(sys.modules)))
"""
  done = children.run(sys.executable, "-c", code, check=True)
  assert done.stdout.splitlines() == ["[]"]


@pytest.mark.slow
def test_a_recipe_runs_with_few_packages(children, tmp_path):
  script = pathlib.Path(__file__).parent / "few_packages.py"
  done = children.run(
    *(sys.executable, script, tmp_path),
    cwd=PACKAGE.parent,
    env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
  )
  assert done.returncode == 0, done.stderr
  assert "Warning" not in done.stderr
  assert "evaluation.png is not drawn without matplotlib" in done.stderr
  written = {path.name for path in (tmp_path / "run").iterdir()}
  wanted = {"samples.npz", "evaluation.json", "samples", "report.html"}
  assert wanted <= written

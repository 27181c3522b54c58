"""Tests of the notebooks, as files and run by a kernel."""

import ast
import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import types
from xml.etree import ElementTree

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.children import PATIENCE

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / "launch" / "colab"
NAMES = ("distil", "evaluate")
MOST_BYTES, MOST_LINES, WIDTH = 300_000, 9, 80
# Matches a form field of Colab: its name, its value and its type.
FIELD = re.compile(r"^(\w+) = (.*?)  # @param (\{.*\})$", re.MULTILINE)
TINY = {
  "CLASSIFIER_UPDATES": 10,
  "TEACHER_UPDATES": 10,
  "STUDENT_UPDATES": 4,
  "START_STEPS": 4,
}


class Kernel(AsyncKernelManager):
  """A kernel of this Python, without an installed kernel specification."""

  @property
  def kernel_spec(self):
    command = [sys.executable, "-m", "ipykernel_launcher"]
    # Otherwise the kernel warns that connections are not encrypted.
    quiet = "--IPKernelApp.log_level=ERROR"
    return KernelSpec(argv=[*command, "-f", "{connection_file}", quiet])


def read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
  """The code cells of a notebook, by name."""
  return {c.id: c for c in notebook.cells if c.cell_type == "code"}


def set_fields(cells, **values):
  """Writes values into the forms of the cells; each field must exist once."""
  for name, value in values.items():
    found = [
      (cell, match)
      for cell in cells
      for match in FIELD.finditer(cell.source)
      if match[1] == name
    ]
    assert len(found) == 1, name
    cell, match = found[0]
    start, end = match.span(2)
    cell.source = f"{cell.source[:start]}{value!r}{cell.source[end:]}"


def fields(name):
  """The form fields of a notebook: name -> default value."""
  return {
    field: ast.literal_eval(value)
    for cell in code(read(name)).values()
    for field, value, _ in FIELD.findall(cell.source)
  }


def execute(name, folder, **values):
  """Runs the code cells of a notebook with other form values."""
  notebook = read(name)
  for cell in code(notebook).values():
    cell.outputs = []
  set_fields(code(notebook).values(), **values)
  client = NotebookClient(
    notebook,
    kernel_manager_class=Kernel,
    timeout=PATIENCE,
    startup_timeout=PATIENCE,
    coalesce_streams=True,
    resources={"metadata": {"path": str(folder)}},
  )
  client.execute(
    env=os.environ
    | {
      "IPYTHONDIR": str(folder / ".ipython"),
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      # The kernel gets one device, and compiles fast.
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
  )
  return code(notebook)


def printed(cell):
  return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def pictures(cell):
  return [
    base64.b64decode(o.data["image/png"])
    for o in cell.outputs
    if o.output_type == "display_data" and "image/png" in o.data
  ]


def tables(cell):
  """The rows of each table in a cell's output, by column."""
  found = []
  for output in cell.outputs:
    if "text/html" in output.get("data", {}):
      html = output.data["text/html"].replace("<br>", "<br />")
      for table in ElementTree.fromstring(html).iter("table"):
        header, *rows = [[cell.text for cell in row] for row in table]
        found.append([dict(zip(header, row, strict=True)) for row in rows])
  return found


def shown(cell):
  """The displayed output of a cell as plain text."""
  return "\n".join(
    output.data["text/plain"]
    for output in cell.outputs
    if output.output_type == "display_data"
  )


def complaints(cells):
  """The lines that a kernel wrote to its error stream."""
  return [
    (name, o)
    for name, cell in cells.items()
    for o in cell.outputs
    if o.output_type == "error" or o.get("name") == "stderr"
  ]


@pytest.mark.slow
def test_the_second_notebook_runs_on_the_run_of_the_first(tmp_path):
  check_distilled(execute("distil", tmp_path, **TINY, NUM_IMAGES=20), tmp_path)
  few = {"NUM_IMAGES": 20, "BATCH_SIZE": 20}
  check_judged(execute("evaluate", tmp_path, **few, NUM_STEPS=(1, 2)), tmp_path)
  check_alone(execute("evaluate", tmp_path, **few, WORKDIR=""))


def check_distilled(distilled, folder):
  """The first notebook trains from data to a one-step student."""
  assert complaints(distilled) == []
  assert "1,497 images of 8x8x1" in printed(distilled["train"])
  counts = {name: len(pictures(cell)) for name, cell in distilled.items()}
  assert {name: count for name, count in counts.items() if count} == {
    "teacher": 2,
    "students": 3,
    "curve": 1,
    "draw": 1,
  }
  (steps,) = re.findall(r"halve/001 .* 8/8 ", printed(distilled["train"]))
  assert steps
  (rows,) = tables(distilled["table"])
  assert "FD-classifier" in rows[0]
  models = [(row["model"], row["steps"]) for row in rows]
  assert models[-2:] == [("halve/002", "2"), ("halve/001", "1")]
  assert "the run's own classifier: no FID" in shown(distilled["table"])
  made = folder / "runs" / "colab_student"
  assert (made / "model.stablehlo").exists()
  assert json.loads((made / "sampler.json").read_text())["num_steps"] == 1


def check_judged(evaluated, folder):
  """The second notebook judges a run and an exported student."""
  assert complaints(evaluated) == []
  shows = [name for name, cell in evaluated.items() if pictures(cell)]
  assert shows == ["sheets", "curve", "between"]
  (rows,) = tables(evaluated["table"])
  assert [(row["model"], row["steps"]) for row in rows] == [
    ("teacher", "2"),
    ("teacher", "1"),
    ("halve/002", "2"),
    ("halve/001", "1"),
    ("colab_student", "1"),
  ]
  # The exported file equals the student, except for rounding by XLA.
  own, exported = (float(row["FD-classifier"]) for row in rows[-2:])
  assert exported == pytest.approx(own, rel=1e-2)
  facts = shown(evaluated["table"])
  assert "detector: the run's own classifier: no FID" in facts
  assert "FD-classifier of two samples of 748 real images: " in facts
  (costs,) = tables(evaluated["cost"])
  rounds = ["classifier", "teacher", "halve/002", "halve/001", "all"]
  assert [row["round"] for row in costs] == rounds
  # There were 10 updates of 64 images; a gradient counts as three passes.
  assert costs[1]["passes"] == str(3 * 64 * 10)
  assert printed(evaluated["between"]) == "colab_student\n"
  kept = (folder / "runs" / "colab" / "evaluated").glob("evaluation_*.json")
  # The evaluations of both notebooks are kept, with 8 and 5 rows.
  assert {len(json.loads(path.read_text())["rows"]) for path in kept} == {8, 5}


def check_alone(cells):
  """A student without its run is shown but not judged."""
  assert complaints(cells) == []
  shows = [name for name, cell in cells.items() if pictures(cell)]
  assert shows == ["sheets", "between"]
  (models,) = tables(cells["models"])
  assert models == [
    {"name": "colab_student", "kind": "student", "num_steps": "1"}
  ]


@pytest.fixture
def ran(monkeypatch):
  """Records the commands that cells run, and runs none."""
  commands = []

  def run(command, check):
    assert check
    commands.append(command)

  monkeypatch.setattr(subprocess, "run", run)
  return commands


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  ("here", "jax"),
  [
    ({}, "jax"),
    ({"nvidia-smi"}, "jax[cuda12]"),
    ({"libtpu"}, "jax[tpu]"),
    ({"diffdistill", "libtpu"}, None),
  ],
)
def test_a_runtime_without_the_package_installs_it(
  name, here, jax, ran, monkeypatch
):
  monkeypatch.setattr(
    "shutil.which", lambda name: name if name in here else None
  )
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name: name if name in here else None
  )
  cells, known = code(read(name)), {}
  assert list(cells)[:3] == ["source", "chips", "install"]
  for cell in list(cells.values())[:3]:
    exec(cell.source, known)
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  source = "git+https://github.com/OWNER/diffdistill"
  assert ran == ([] if jax is None else [[*pip, jax, source]])


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_can_be_installed_in_place_of_an_address(name):
  cells = code(read(name))
  set_fields(
    cells.values(), SOURCE="/content/diffdistill-0.1.0-py3-none-any.whl"
  )
  assert "'/content/diffdistill-" in cells["source"].source


@pytest.mark.parametrize("name", NAMES)
def test_drive_and_buckets_are_opened_only_on_colab(name, ran, monkeypatch):
  opened = []
  google, colab = types.ModuleType("google"), types.ModuleType("google.colab")
  colab.drive = types.SimpleNamespace(mount=opened.append)
  colab.auth = types.SimpleNamespace(
    authenticate_user=lambda: opened.append("user")
  )
  cells = code(read(name))
  drive = {field: "" for field in ("PHOTOS", "WORKDIR", "STUDENT")}
  drive["WORKDIR"] = "/content/drive/MyDrive/run"
  bucket = {**drive, "WORKDIR": "gs://bucket/run"}

  def open_all():
    for values in (drive, bucket):
      for cell in ("drive", "bucket"):
        exec(cells[cell].source, {"sys": sys, "pip": [], **values,
                                  "subprocess": subprocess})  # fmt: skip

  open_all()
  assert (opened, ran) == ([], [])
  monkeypatch.setitem(sys.modules, "google", google)
  monkeypatch.setitem(sys.modules, "google.colab", colab)
  open_all()
  assert (opened, ran) == (["/content/drive", "user"], [["gcsfs"]])


def test_own_pictures_choose_the_recipe_of_folders():
  cells = code(read("distil"))
  values = {"PHOTOS": "photos", "MINUTES": 7}
  for cell in ("recipe", "own", "numbers"):
    exec(cells[cell].source, values)
  config = values["config"]
  assert config.data.source.kind == "folder"
  assert config.data.source.path == "photos"
  assert config.minutes == 7
  assert "halve" in config.stages


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_small_complete_and_without_errors(name):
  path = FOLDER / f"{name}.ipynb"
  notebook = read(name)
  nbformat.validate(notebook)
  assert path.stat().st_size < MOST_BYTES
  text = path.read_text()
  # A notebook must not name machines, persons or errors.
  found = re.findall(
    r"/(?:home|root|tmp|work|Users|content/[a-z_]+\.)|Warning|Traceback", text
  )
  assert found == []
  cells = code(notebook)
  assert complaints(cells) == []
  # A notebook was run whole, or is stored without outputs.
  counts = [cell.execution_count for cell in cells.values()]
  assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))
  for output in (o for cell in cells.values() for o in cell.outputs):
    assert set(output.get("data", {})) <= {
      "image/png",
      "text/html",
      "text/plain",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_no_inner_room_of_the_package(name):
  imported = [
    name.name if isinstance(node, ast.Import) else node.module
    for cell in code(read(name)).values()
    for node in ast.walk(ast.parse(cell.source))
    if isinstance(node, ast.Import | ast.ImportFrom)
    for name in node.names
  ]
  assert [n for n in imported if n.startswith("diffdistill")] == ["diffdistill"]


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_of_a_notebook_can_be_parsed(name):
  for cell in read(name).cells:
    lines = cell.source.splitlines()
    assert len(lines) <= MOST_LINES, cell.id
    if cell.cell_type == "code":
      ast.parse(cell.source)
      long = [line for line in lines if len(line) > WIDTH]
      assert long == [], cell.id


@pytest.mark.parametrize("name", NAMES)
def test_every_form_field_has_a_description(name):
  count = 0
  kinds = {"string": str, "integer": int, "raw": tuple}
  for cell in code(read(name)).values():
    lines = cell.source.splitlines()
    for field, value, form in FIELD.findall(cell.source):
      count += 1
      kind = kinds[json.loads(form.replace("type", '"type"'))["type"]]
      assert isinstance(ast.literal_eval(value), kind), field
      (at,) = (
        i for i, line in enumerate(lines) if line.startswith(f"{field} =")
      )
      assert re.match(r"# .+", lines[at - 1]), field
      assert lines[0].startswith("# @title "), field
  assert count >= 8


def test_values_can_be_written_into_a_form():
  cell = types.SimpleNamespace(
    source='# A.\nA = "x # y"  # @param {type: "string"}\nAB = 1  # @param {}'
  )
  set_fields([cell], A="z")
  assert cell.source.splitlines()[1] == "A = 'z'  # @param {type: \"string\"}"
  with pytest.raises(AssertionError, match="B"):
    set_fields([cell], B=2)


def test_the_second_notebook_opens_the_run_of_the_first_by_default():
  first, second = map(fields, NAMES)
  assert second["WORKDIR"] == first["WORKDIR"]
  assert second["STUDENT"] == f"{first['WORKDIR']}_student"

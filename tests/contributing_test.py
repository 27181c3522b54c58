"""CONTRIBUTING's paper, added as it says, trained, and put to the suite."""

import dataclasses
import importlib.util
import inspect
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import recipes
from diffdistill import objectives
from diffdistill.run import from_config

# ml_collections loads a config file by a method that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

PAGE = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"
# The fenced blocks of the page, by the file that their first line names.
BLOCKS = dict(
  re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S)
)
NAME = "guidance_distillation"
FILE = f"diffdistill/objectives/{NAME}.py"
TABLE = "diffdistill/objectives/__init__.py"
RECIPES = "configs/recipes/guidance_distillation.py"
SUITE = "tests/objectives/suite_test.py"


def load(path):
  """A test file as a module of its own: what is added to it stays here."""
  spec = importlib.util.spec_from_file_location(
    f"contributing_{pathlib.Path(path).stem}", PAGE.parent / path
  )
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


doors_test = load("tests/doors_test.py")
suite_test = load(SUITE)


def one_line(text, names=None):
  """The entry of a table, which must be one line."""
  (line,) = text.strip().splitlines()
  ((name, value),) = eval(f"{{{line}}}", names).items()
  assert name == NAME
  return value


@pytest.fixture(scope="module", autouse=True)
def added(tmp_path_factory):
  """Adds the paper, as far as it can be told from outside; its folder."""
  root = tmp_path_factory.mktemp("contribution")
  path = root / FILE
  path.parent.mkdir(parents=True)
  path.write_text(BLOCKS[FILE])
  importing, line = BLOCKS[TABLE].split("\n\n")
  with pytest.MonkeyPatch.context() as patch:
    folders = [*objectives.__path__, str(path.parent)]
    patch.setattr(objectives, "__path__", folders)
    names = {}
    exec(importing, names)  # by which it is imported for the first time
    patch.setitem(objectives.OBJECTIVES, NAME, one_line(line, names))
    suite_test.PAPERS[NAME] = one_line(BLOCKS[SUITE])
    yield root
  del sys.modules[f"diffdistill.objectives.{NAME}"]
  delattr(objectives, NAME)


def test_the_page_names_four_files():
  assert set(BLOCKS) == {FILE, TABLE, RECIPES, SUITE}


def test_the_file_goes_through_the_doors(added, monkeypatch):
  monkeypatch.setattr(doors_test, "PACKAGE", added / "diffdistill")
  doors_test.test_imports_go_through_doors(added / FILE)


CHECKS = [
  pytest.param(
    check,
    id=name.removeprefix("test_"),
    marks=[m for m in getattr(check, "pytestmark", []) if m.name == "slow"],
  )
  for name, check in vars(suite_test).items()
  if name.startswith("test_")
]


@pytest.mark.parametrize("check", CHECKS)
def test_it_passes_the_suite(check, request):
  arguments = {
    name: NAME if name == "name" else request.getfixturevalue(name)
    for name in inspect.signature(check).parameters
  }
  check(**arguments)


def test_its_loss_is_the_square_of_the_guidance(mesh_of):
  """Before the first update, when student and teacher are the same."""
  on = suite_test.bench(NAME, mesh_of(1))

  def loss(scale):
    _, metrics = on.update(on.start(), "student", guided=scale)
    return float(metrics["student/loss"][0])

  assert loss(0.0) < 1e-12
  assert loss(1.0) > 1e-2
  assert loss(2.0) == pytest.approx(4 * loss(1.0), rel=1e-5)


def test_it_refuses_a_teacher_that_is_not_guided():
  objective = suite_test.build(NAME)
  guidance = dataclasses.replace(objective.guidance, weight=0.0)
  with pytest.raises(ValueError, match="guidance weight is 0, and the student"):
    dataclasses.replace(objective, guidance=guidance)


@pytest.fixture(scope="module")
def config(tiny_config):
  """The tiny teacher, then the recipe: 6 updates each."""
  config = ConfigDict({**tiny_config, "run": ("teacher",)})
  config.model.label_dropout = 0.25
  config.stages.teacher.num_updates = 6
  names = dict(vars(recipes))
  exec(BLOCKS[RECIPES], names)
  names[NAME](
    config,
    weight=2.0,
    num_steps=4,
    learning_rate=1e-2,
    batch_size=8,
    num_updates=6,
  )
  return config.to_dict()


def test_it_trains(config, run_cli, tmp_path, capsys):
  path, workdir = tmp_path / "contribution.py", tmp_path / "run"
  path.write_text(
    "from ml_collections import ConfigDict\n\n\n"
    f"def get_config():\n  return ConfigDict({config!r})\n"
  )
  assert run_cli("train", f"--config={path}", f"--workdir={workdir}") == 0
  run = from_config.build(config)
  products = [
    run.product(epath.Path(workdir), name) for name in ("teacher", "guided/004")
  ]
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), *products)
  assert any(jax.tree.leaves(changed))
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  assert (last["round"], last["step"]) == ("guided/004", 6)
  assert last["student/loss"] > 0
  # Six updates of 8 images: two passes of the teacher, a gradient of three.
  assert last["passes"] == 6 * 8 * 5
  assert (workdir / "samples" / "guided_004.png").exists()
  capsys.readouterr()
  assert run_cli("list") == 0
  assert f"  {NAME:<26} Distillation of a guided" in capsys.readouterr().out

"""Adds CONTRIBUTING's papers as its text says, then trains and tests them."""

import dataclasses
import functools
import importlib.util
import inspect
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from diffdistill import objectives
from diffdistill.arrays import UNCONDITIONAL
from diffdistill.configs import recipes
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.run import from_config
from diffdistill.sampling.ddim import DDIM
from tests.objectives import bench
from tests.objectives.given import OneTime, batch_of, loss_of

# ml_collections loads config files with a deprecated function of Python, whose
# warning is ignored.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

PAGE = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"
GUIDANCE, CRITIC = "one_guidance", "distribution_matching"
TABLE = "diffdistill/objectives/__init__.py"
RECIPE = f"configs/recipes/{GUIDANCE}.py"
BENCH = "tests/objectives/bench.py"


def file_of(name):
  """Finds the path of a paper's own file, as CONTRIBUTING names it."""
  return f"diffdistill/objectives/{name}.py"


def examples():
  """Finds each paper's fenced blocks, by the file name in their first line."""
  found = {}
  for section in PAGE.read_text().split("\n## "):
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", section, re.S))
    for name in (GUIDANCE, CRITIC):
      if file_of(name) in blocks:
        found[name] = blocks
  return found


EXAMPLES = examples()
every_example = pytest.mark.parametrize("name", EXAMPLES)


def load(path):
  """Loads a test file as a new module, which a test can change safely."""
  spec = importlib.util.spec_from_file_location(
    f"contributing_{pathlib.Path(path).stem}", PAGE.parent / path
  )
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


doors_test = load("tests/doors_test.py")
suite_test = load("tests/objectives/suite_test.py")


def one_line(name, text, names):
  """Adds an entry to a table; the entry must be one line."""
  (line,) = text.strip().splitlines()
  ((key, value),) = eval(f"{{{line}}}", dict(names)).items()
  assert key == name
  return value


@pytest.fixture(scope="module", autouse=True)
def added(tmp_path_factory):
  """Adds the papers, and returns the folder of their files."""
  root = tmp_path_factory.mktemp("contribution")
  (root / file_of(GUIDANCE)).parent.mkdir(parents=True)
  with pytest.MonkeyPatch.context() as patch:
    for name, blocks in EXAMPLES.items():
      path = root / file_of(name)
      path.write_text(blocks[file_of(name)])
      folders = [*objectives.__path__, str(path.parent)]
      patch.setattr(objectives, "__path__", folders)
      place = one_line(name, blocks[TABLE], {})
      patch.setitem(objectives.OBJECTIVES.places, name, place)
      fields = one_line(name, blocks[BENCH], vars(bench))
      patch.setitem(bench.PAPERS, name, fields)
    yield root
  for name in EXAMPLES:
    # A test that runs alone may have imported one of the two or none.
    if sys.modules.pop(f"diffdistill.objectives.{name}", None):
      delattr(objectives, name)


def test_the_page_names_the_files_of_each_paper():
  assert set(EXAMPLES) == {GUIDANCE, CRITIC}
  for name, blocks in EXAMPLES.items():
    recipe = {RECIPE} if name == GUIDANCE else set()
    assert set(blocks) == {file_of(name), TABLE, BENCH} | recipe


@every_example
def test_the_file_of_a_paper_obeys_the_import_rules(name, added, monkeypatch):
  monkeypatch.setattr(doors_test, "PACKAGE", added / "diffdistill")
  doors_test.test_imports_go_through_doors(added / file_of(name))


# Leave out the checks that need a teacher in every turn, because a critic's
# turn has none.
OF_TEACHERS = (
  "test_one_executable_serves_every_round",
  "test_a_teacher_in_bfloat16_is_the_rounded_one",
)
CHECKS = [
  pytest.param(
    paper,
    check,
    id=f"{paper}-{name.removeprefix('test_')}",
    marks=[m for m in getattr(check, "pytestmark", []) if m.name == "slow"],
  )
  for paper in EXAMPLES
  for name, check in vars(suite_test).items()
  if name.startswith("test_")
  # Run the checks that are not about one paper only once.
  and (paper == GUIDANCE or "name" in inspect.signature(check).parameters)
  and (paper == GUIDANCE or name not in OF_TEACHERS)
]


@pytest.mark.parametrize(("paper", "check"), CHECKS)
def test_a_paper_passes_the_suite(paper, check, request):
  arguments = {
    name: paper if name == "name" else request.getfixturevalue(name)
    for name in inspect.signature(check).parameters
  }
  check(**arguments)


def test_one_executable_serves_each_turn_of_a_critic(mesh_of):
  on = bench.bench(CRITIC, mesh_of(1))

  def loss(turn, **fields):
    _, metrics = on.update(on.start(), turn, **fields)
    return float(metrics[f"{turn[0]}/loss"][0])

  assert on.objective.cycle[:5] == (("critic",),) * 5
  critic, student = on.objective.cycle[-2:]
  assert student == ("student",)
  assert loss(critic) == loss(critic, guided=0.0, num_steps=1)
  assert loss(student) != loss(student, guided=0.0, learning_rate=0.3)
  assert {on.updates[turn]._cache_size() for turn in (critic, student)} == {1}


def test_the_loss_of_the_paper_is_the_square_of_the_guidance(mesh_of):
  """Before the first update, the student equals the teacher, so this holds."""
  on = bench.bench(GUIDANCE, mesh_of(1))

  def loss(scale):
    _, metrics = on.update(on.start(), ("student",), guided=scale)
    return float(metrics["student/loss"][0])

  assert loss(0.0) < 1e-12
  assert loss(1.0) > 1e-2
  assert loss(2.0) == pytest.approx(4 * loss(1.0), rel=1e-5)


def test_the_paper_refuses_a_teacher_without_guidance():
  objective = bench.build(GUIDANCE)
  guidance = dataclasses.replace(objective.guidance, weight=0.0)
  with pytest.raises(ValueError, match="guidance weight is 0, so the student"):
    dataclasses.replace(objective, guidance=guidance)


@dataclasses.dataclass(frozen=True)
class Constant(OneTime):
  """A network that outputs its only weight for every input."""

  def init(self, key):
    return jnp.zeros(())

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    return 0 * x + params


def test_the_losses_of_a_critic_and_its_student_equal_those_by_hand():
  """The student outputs c, the critic a and the teacher b.

  Only the student gets a gradient.
  """
  a, b, c = 0.4, -0.3, 1.5
  given = bench.build(CRITIC)
  goal = dataclasses.replace(
    given,
    denoiser=Denoiser(network=Constant(), process=given.denoiser.process),
    weighting="constant",
    guidance=Guidance(),
  )
  batch = batch_of(jnp.zeros((8, 1, 1, 2)))

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_slope(turn, value):
    def loss(value):
      trees = {"student": c, "critic": a, "teacher": b, turn[0]: value}
      return loss_of(goal, trees, batch, jax.random.key(0), turn)[0]

    return jax.value_and_grad(loss)(value)

  np.testing.assert_allclose(
    value_and_slope(("critic",), a), [(c - a) ** 2, 2 * (a - c)], rtol=1e-5
  )
  # The loss of the student must fall in the direction from the critic to the
  # teacher.
  slope = (a - b) / abs(c - b)
  np.testing.assert_allclose(
    value_and_slope(("student",), c), [c * slope, slope], rtol=1e-5
  )


def test_a_student_of_a_critic_is_used_in_one_step():
  objective = bench.build(CRITIC)
  for sampler in (
    DDIM(process=objective.denoiser.process),
    dataclasses.replace(objective.sampler, form="difference"),
  ):
    with pytest.raises(ValueError, match=r"made for one_step of form x0, not"):
      dataclasses.replace(objective, sampler=sampler)


def guided_stage(config):
  """Makes the stage of CONTRIBUTING's recipe, with 6 updates."""
  names = dict(vars(recipes))
  exec(EXAMPLES[GUIDANCE][RECIPE], names)
  names[GUIDANCE](
    config,
    weight=2.0,
    num_steps=4,
    learning_rate=1e-2,
    batch_size=8,
    num_updates=6,
  )


def critic_stage(config):
  """Makes a stage of five updates of the critic and one of the student."""
  config.run = (*config.run, "matched")
  config.stages.matched = {
    "objective": {"kind": CRITIC},
    "sampler": {"kind": "one_step"},
    "guidance": {"weight": 2.0},
    "optimizer": {"learning_rate": 1e-2},
    "num_updates": 6,
    "batch_size": 8,
    "frozen": {"teacher": "teacher"},
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "add", "product", "passes", "words"),
  [
    # Each image costs two passes of the teacher, and a gradient of the student,
    # which counts as three passes.
    (GUIDANCE, guided_stage, "guided/004", 6 * 5, "Distillation of a guided"),
    # Each of the critic's five turns in a cycle has a pass of the student and a
    # gradient of the critic (3). Then the student's turn has a gradient (3), a
    # pass of the critic and two passes of the teacher.
    (
      CRITIC,
      critic_stage,
      "matched/001",
      5 * 4 + 6,
      "Distribution matching of a",
    ),
  ],
)
def test_a_paper_of_contributing_trains(
  name, add, product, passes, words, tiny_config, run_cli, tmp_path, capsys
):
  config = ConfigDict({**tiny_config, "run": ("teacher",)})
  config.model.label_dropout = 0.25
  config.stages.teacher.num_updates = 6
  add(config)
  path, workdir = tmp_path / "contribution.py", tmp_path / "run"
  path.write_text(
    "from ml_collections import ConfigDict\n\n\n"
    f"def get_config():\n  return ConfigDict({config.to_dict()!r})\n"
  )
  assert run_cli("train", f"--config={path}", f"--workdir={workdir}") == 0
  run = from_config.build(config.to_dict())
  products = [
    run.product(epath.Path(workdir), round_) for round_ in ("teacher", product)
  ]
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), *products)
  assert any(jax.tree.leaves(changed))
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  assert (last["round"], last["step"]) == (product, 6)
  assert np.isfinite(last["student/loss"])
  assert last["student/loss"] != 0
  assert last["passes"] == 8 * passes
  picture = product.replace("/", "_")
  assert (workdir / "samples" / f"{picture}.png").exists()
  capsys.readouterr()
  assert run_cli("list") == 0
  assert f"  {name:<26} {words}" in capsys.readouterr().out

"""Tests 1,000 changed fields and flags, from the parser to the experiment.

Each change is refused in one line, or makes another experiment. Nothing is
compiled; `fuzz_commands.py` runs some changes as real commands.
"""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import time

import pytest

from diffdistill.fields import plain
from diffdistill.objectives import OBJECTIVES
from diffdistill.planning.topology import topology_of
from diffdistill.run import from_config, model_section
from diffdistill.system import hosts
from diffdistill.tools import sample as sampling
from tests.fuzz_mutations import RECIPES, at, fields_of, mutations, source_of
from tests.ranges_test import CLASSES

NUMBER, SEED = 1000, 0
# The longest time that one change may take, in seconds on a busy machine.
PATIENCE = 60
PACKAGE = pathlib.Path(sampling.__file__).parents[1]
# A refusal uses one of these words to name its remedy.
REMEDY = re.compile(
  r"pass|remove|did you mean|see diffdistill|add it|name another|"
  r"leave|give|number|import|use |write|expected|run `|the earlier ones are"
)


@pytest.fixture(scope="module")
def cheaply():
  """Makes all experiments share the trace of each network, which saves time."""
  with pytest.MonkeyPatch.context() as patch:
    met, trace = {}, model_section.trace

    def once(path, network):
      key = path, repr(network)
      if key not in met:
        try:
          met[key] = trace(path, network)
        except ValueError as error:
          met[key] = error
      if isinstance(met[key], ValueError):
        raise met[key]

    for module in (from_config, model_section):
      patch.setattr(module, "trace", once)
    yield


@pytest.fixture(scope="module")
def seen():
  """Replaces the actions of commands by a record of their arguments."""
  calls = []
  runs = functools.cache(lambda recipe: from_config.build(fields_of(recipe)))
  draw = sampling.sample  # It refuses the name of a file first.
  recipe_of = str  # a workdir has the name of its run's recipe

  def train(config, workdir, redo):
    calls.append((plain(config), shown(from_config.build(config))))

  def sample(workdir, **given):
    run = runs(recipe_of(workdir))
    told = run.guidance
    if given["guidance"] is not None:
      told = dataclasses.replace(told, weight=given["guidance"])
    if given["out"].suffix not in (".png", ".npz"):
      draw(workdir, **given)
    sampler = run.stages[-1].objective.sampler
    generator = run.generator(sampler, 1, label=given["label"], guidance=told)
    generator.noise(given["seed"], 0)
    calls.append((given, told))

  def evaluate(workdir, num_images, num_steps, inception, reference, follow):
    given = {"num_images": num_images, "num_steps": num_steps}
    given = {k: v for k, v in given.items() if v is not None}
    run = runs(recipe_of(workdir))
    calls.append((dataclasses.replace(run.evaluation, **given), follow))

  def plan(config, topology, as_json):
    calls.append(topology_of(topology).devices)

  def others(**given):
    calls.append(given)

  with pytest.MonkeyPatch.context() as patch:
    for name in ("train", "sample", "evaluate", "plan"):
      patch.setattr(f"diffdistill.tools.{name}.{name}", locals()[name])
    for name in ("export", "benchmark"):
      patch.setattr(f"diffdistill.tools.{name}.{name}", others)
    patch.setattr(hosts, "join", lambda *place: calls.append(place))
    yield calls


def shown(experiment):
  """Lists all parts of an experiment, but not the config behind it."""
  # A guidance does not name the field `together`, which changes no image.
  together = experiment.guidance.together
  return repr((dataclasses.replace(experiment, config={}), together))


@pytest.fixture(scope="module")
def base(seen, cheaply):
  """Builds the experiment of an unchanged recipe."""
  return functools.cache(
    lambda recipe: shown(from_config.build(fields_of(recipe)))
  )


def arguments(mutation, path):
  """Builds the command line of a mutation; writes its config to the path."""
  file, _, recipe = mutation.recipe.partition(":")
  config = f"--config=configs/{file}.py:{recipe}"
  if mutation.fields is not None:
    path.write_text(source_of(mutation.fields))
    config = f"--config={path}"
  if mutation.command in ("sample", "evaluate", "export"):
    config = f"--workdir={mutation.recipe}"
  if mutation.command == "export":
    return "export", config, "--out=there", *mutation.flags
  if mutation.command == "train":
    return "train", config, "--workdir=unused", *mutation.flags
  return mutation.command, config, *mutation.flags


def has_no_effect(mutation, call, base):
  """Whether an accepted change of a config did not change the experiment."""
  if mutation.command != "train" or mutation.path in (
    "expect_devices",
    "redo",
  ):
    return False
  if not isinstance(call[-1], str):  # the call of hosts.join
    return False
  fields, built = call
  unchanged = fields_of(mutation.recipe)
  if fields == unchanged or built != base(mutation.recipe):
    return False
  # These changes mean the same as the base: all devices, or a default that was
  # left out.
  return not (
    mutation.path.startswith("mesh.") or _only_lacks(fields, unchanged)
  )


def _only_lacks(fields, unchanged):
  """Whether the fields are the same except for missing keys."""
  return all(
    name in unchanged
    and (
      value == unchanged[name]
      or (
        isinstance(value, dict)
        and isinstance(unchanged[name], dict)
        and _only_lacks(value, unchanged[name])
      )
    )
    for name, value in fields.items()
  )


@pytest.mark.slow
def test_every_changed_field_is_refused_in_one_line_or_has_an_effect(
  run_cli, capsys, tmp_path, seen, cheaply, base
):
  faults, accepted = [], 0
  for index, mutation in enumerate(mutations(NUMBER, SEED)):
    seen.clear()
    began = time.monotonic()
    try:
      line = arguments(mutation, tmp_path / f"config_{index}.py")
      status = run_cli(*line)
    except BaseException as error:
      faults.append(f"{mutation}: {type(error).__name__}: {str(error)[:200]}")
      continue
    printed = capsys.readouterr().err
    if time.monotonic() - began > PATIENCE:
      faults.append(f"{mutation} took {time.monotonic() - began:.0f} s")
    if status == 0:
      accepted += 1
      if has_no_effect(mutation, seen[-1], base):
        faults.append(f"{mutation} is accepted and has no effect")
    elif (
      status not in (1, 2)
      or printed.count("\n") != 1
      or not REMEDY.search(printed)
      or len(printed) > 2000
    ):
      faults.append(f"{mutation} is {status}: {printed[:300]!r}")
  assert not faults, "\n".join([f"{len(faults)} faults", *faults])
  # The test would test nothing if all changes were refused, or none.
  assert NUMBER / 20 < accepted < NUMBER / 2


def test_the_recipes_have_every_paper():
  kinds = {
    at(fields, f"stages.{name}").get("objective", {}).get("kind", "pairs")
    for fields in map(fields_of, RECIPES)
    for name in fields["run"]
  }
  # Fine-tuning is the teacher's objective with other weights at the start.
  assert kinds == {*OBJECTIVES, "pairs"} - {"fine_tuning"}


@functools.cache
def names_read():
  """Lists the attributes that the package reads outside of `__post_init__`."""
  found = set()

  class Reader(ast.NodeVisitor):
    def visit_FunctionDef(self, node):
      if node.name != "__post_init__":
        self.generic_visit(node)

    def visit_Attribute(self, node):
      if isinstance(node.ctx, ast.Load):
        found.add(node.attr)
      self.generic_visit(node)

  for path in PACKAGE.rglob("*.py"):
    Reader().visit(ast.parse(path.read_text()))
  return found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_read_by_more_than_its_own_check(cls):
  fields = {f.name for f in dataclasses.fields(cls) if f.init}
  if "parent" in fields:
    fields -= {"parent", "name"}
  assert fields <= names_read() | {"kind"}, inspect.getfile(cls)

"""Changes fields and flags of recipes at random; a seed repeats the changes.

For each change, `fuzz_test.py` parses the command line and builds the
experiment, all in one process. `fuzz_commands.py` runs some changes as real
commands.
"""

import dataclasses
import importlib
import math
import random
from collections.abc import Iterator
from typing import Any

from diffdistill.fields import plain

# Together these recipes use every paper, both kinds of stages, and rounds that
# end by the clock.
RECIPES = (
  "digits:progressive",
  "digits:all",
  "digits:flow_maps",
  "cifar10:half_hour",
  "cifar10:consistency_distillation",
  "cifar10:easy_consistency",
  "cifar10:reflow",
  "cifar10:score_identity",
  "imagenet64:moment_matching",
  "imagenet64:multistep_consistency",
  "imagenet64:guidance_distillation",
)
NUMBERS = (0, -1, 1, 3, 10**9, 10**15, 10**19, 10**400, 2**31 - 2)
FLOATS = (0.0, -1.0, 0.5, 1e-300, 1e-30, 1e300, math.nan, math.inf, -math.inf)
VALUES = (
  *NUMBERS,
  *FLOATS,
  None,
  True,
  "",
  "abc",
  "x" * 100_000,
  "a\nb",
  "\x00",
  (),
  (0,),
  (1, 1),
  (10**9,),
  ("a", "b"),
  {},
  {"a": 1},
)
TEXTS = (
  *map(str, NUMBERS),
  *("0.5", "1e-300", "1e-30", "1e300", "nan", "inf", "-inf"),
  *("None", "True", "abc", "", "x" * 100_000, "a\nb", "²", "1_0", "0x10"),
  *("()", "(0,)", "(1, 1)", f"({10**9},)", "('a', 'b')", "{'a': 1}", "(", "'"),
)
NAMES = (
  "",
  "abc",
  "a b",
  "a\nb",
  "x" * 100_000,
  "\x00",
  "kind",
  "a/b",
  "train",
)
# These are the flags of each command that are not paths, with possible values.
FLAGS = {
  "train": ("expect_devices", "coordinator", "num_processes", "process_id"),
  "sample": (
    *("num_images", "num_steps", "seed", "label", "guidance", "interpolate"),
    *("round", "out"),
  ),
  "evaluate": ("num_images", "num_steps", "expect_devices"),
  "export": ("num_steps", "format", "round"),
  "benchmark": ("num_updates", "num_steps", "stage"),
  "plan": ("topology",),
}
PLACES = ("a:1", "a:99999", ":1", "cpu:0", "cpu:8", f"cpu:{10**19}", "v5e:²")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
  """One change of a correct command.

  Args:
    command: the name of the command, such as train.
    recipe: the recipe of `RECIPES`, on whose config or run the command works.
    path: the path of the config's field, or the name of the flag.
    flags: the changed command line, without config and workdir.
    fields: the changed config if the config file is changed; else None.
  """

  command: str
  recipe: str
  path: str
  flags: tuple[str, ...] = ()
  fields: dict[str, Any] | None = None

  def __str__(self) -> str:
    what = self.flags[0] if self.flags else f"a file with another {self.path}"
    return f"{self.command} {self.recipe} {what[:120]!r}"


def fields_of(recipe: str) -> dict[str, Any]:
  """Returns the config of a recipe as plain values."""
  file, _, name = recipe.partition(":")
  return plain(
    importlib.import_module(f"diffdistill.configs.{file}").get_config(name)
  )


def mutations(number: int, seed: int) -> Iterator[Mutation]:
  """Yields mutations; all kinds of changes and all recipes take turns."""
  draw = random.Random(seed)
  configs = {recipe: fields_of(recipe) for recipe in RECIPES}
  for index in range(number):
    recipe = RECIPES[index % len(RECIPES)]
    fields = configs[recipe]
    kind = draw.choices(
      (_set_by_flag, _set_in_file, _edit, _flag), (4, 3, 2, 1)
    )
    yield kind[0](draw, recipe, fields)


def _set_by_flag(draw: random.Random, recipe: str, fields: Any) -> Mutation:
  """Makes a flag --config.a.b=TEXT; one in ten has a misspelt path."""
  path = draw.choice(list(_leaves(fields)))
  if draw.random() < 0.1:
    path = path[:-2] + path[-1] + path[-2]
  flag = f"--config.{path}={draw.choice(TEXTS)}"
  return Mutation(command="train", recipe=recipe, path=path, flags=(flag,))


def _set_in_file(draw: random.Random, recipe: str, fields: Any) -> Mutation:
  """Makes a config file in which one field has another value, of any type."""
  path = draw.choice(list(_leaves(fields)))
  value = draw.choice(VALUES)
  return _of_file(recipe, path, replaced(fields, path, value))


def _edit(draw: random.Random, recipe: str, fields: Any) -> Mutation:
  """Makes a config file with a key removed or renamed, or two keys swapped."""
  paths = list(_leaves(fields))
  sections = sorted({p.rpartition(".")[0] for p in paths} - {""})
  path = draw.choice(paths + sections)
  how = draw.choice(("remove", "rename", "swap", "kind"))
  if how == "swap":
    other = draw.choice(sections)
    path = draw.choice(sections)
    one, two = (at(fields, p) for p in (path, other))
    if not (other.startswith(path) or path.startswith(other)):
      changed = replaced(replaced(fields, path, two), other, one)
      return _of_file(recipe, f"{path} and {other}", changed)
  if how == "kind":
    path = f"{draw.choice(sections)}.kind"
    return _of_file(recipe, path, replaced(fields, path, draw.choice(NAMES)))
  parent, _, name = path.rpartition(".")
  kept = dict(at(fields, parent)) if parent else dict(fields)
  value = kept.pop(name)
  if how == "rename":
    kept[draw.choice((name[:-1], f"{name}s", *NAMES))] = value
  return _of_file(recipe, path, replaced(fields, parent, kept))


def _flag(draw: random.Random, recipe: str, fields: Any) -> Mutation:
  """Changes a flag of a command that is not a field of a config."""
  command = draw.choice(list(FLAGS))
  name = draw.choice(FLAGS[command])
  text = draw.choice((*TEXTS, *PLACES))
  flags = (f"--{name}={text}",)
  if name in ("coordinator", "num_processes", "process_id"):
    others = {"coordinator": "a:1", "num_processes": "2", "process_id": "1"}
    others.pop(name)
    flags += ("--multihost", *(f"--{k}={v}" for k, v in others.items()))
  return Mutation(command=command, recipe=recipe, path=name, flags=flags)


def _of_file(recipe: str, path: str, fields: Any) -> Mutation:
  return Mutation(command="train", recipe=recipe, path=path, fields=fields)


def _leaves(fields: Any, path: str = "") -> Iterator[str]:
  """Lists the paths of all values that are not sections."""
  for name, value in fields.items():
    if isinstance(value, dict) and value:
      yield from _leaves(value, f"{path}{name}.")
    else:
      yield f"{path}{name}"


def at(fields: Any, path: str) -> Any:
  """Returns the value at a path."""
  for name in path.split("."):
    fields = fields[name]
  return fields


def replaced(fields: Any, path: str, value: Any) -> Any:
  """Copies the fields with a new value at a path; "" replaces all of them."""
  if not path:
    return value
  name, _, rest = path.partition(".")
  return {**fields, name: replaced(fields.get(name, {}), rest, value)}


def source_of(fields: Any) -> str:
  """Returns the text of a config file with these fields."""
  return (
    "from math import inf, nan\n\nfrom ml_collections import ConfigDict\n\n\n"
    f"def get_config():\n  return ConfigDict({fields!r})\n"
  )

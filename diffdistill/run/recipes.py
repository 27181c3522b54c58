"""Finds recipes by name, such as digits:progressive of configs/digits.py."""

import difflib
import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import diffdistill.configs as configs

FOLDER = Path(configs.__file__).parent


def descriptions() -> dict[str, str]:
  """One line about each installed recipe, by the name of the recipe."""
  found = {}
  for path in sorted(FOLDER.glob("*.py")):
    module = importlib.import_module(f"{configs.__name__}.{path.stem}")
    for name, description in getattr(module, "RECIPES", {}).items():
      found[f"{path.stem}:{name}"] = description
  return found


def located(recipe: str, source: str = "--config") -> str:
  """The file and the name of a recipe, as in FOLDER/digits.py:progressive.

  Args:
    recipe: FILE.py:NAME; or, if there is no such file, the name of an installed
      recipe, such as digits:progressive or configs/digits.py:progressive.
      Without :NAME the file's default recipe is used.
    source: the flag or the argument that named the recipe, for error messages.

  Raises:
    ValueError: if there is neither such a file nor such a recipe.
  """
  if recipe.startswith("~"):
    # Import this only for a path with ~, because the import is slow.
    from diffdistill.system.places import place

    recipe = str(place(source, recipe))
  file, colon, name = recipe.partition(":")
  path = re.fullmatch(r"configs/(\w+\.py)", file)
  if os.path.isfile(file):
    return recipe
  if path and (FOLDER / path[1]).is_file():
    return f"{FOLDER / path[1]}{colon}{name}"
  if not re.fullmatch(r"\w+", file):
    raise ValueError(
      f"{source} is {recipe!r}, but there is no file {os.path.abspath(file)};"
      " `diffdistill list` names the recipes, which need no file"
    )
  known = descriptions()
  if recipe in known or recipe in {name.partition(":")[0] for name in known}:
    return f"{FOLDER / file}.py{colon}{name}"
  close = difflib.get_close_matches(recipe, known)
  close = [each for each in close if each.startswith(f"{file}:")] or close
  remedy = (
    f"did you mean {' or '.join(close)}?"
    if close
    else "`diffdistill list` names the recipes"
  )
  raise ValueError(f"{source} is {recipe!r}, no file and no recipe; {remedy}")


def load(recipe: str) -> Any:
  """Loads the config of a recipe, or of a file.

  Raises:
    ValueError: if the recipe is not found, or the file raises it.
  """
  file, _, name = located(recipe, "recipe").partition(":")
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  if spec is None or spec.loader is None:
    raise ValueError(
      f"recipe is {recipe!r}, no file of Python; pass FILE.py:RECIPE"
    )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([name] if name else []))

"""The command that lists what a recipe can be made of."""

import importlib
from pathlib import Path

from diffdistill import configs
from diffdistill.data import SOURCES
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.sampling import SAMPLERS


def list_all() -> None:
  """Prints objectives, networks, data sources, samplers, configs, recipes."""
  for title, table in (
    ("objectives", OBJECTIVES),
    ("networks", NETWORKS),
    ("classifiers", CLASSIFIERS),
    ("samplers", SAMPLERS),
    ("data sources", SOURCES),
  ):
    print(f"{title}:")
    for name, cls in table.items():
      print(f"  {name:<26} {(cls.__doc__ or '').strip().splitlines()[0]}")
  folder = Path(configs.__file__).parent
  print("configs and recipes:")
  for path in sorted(folder.glob("*.py")):
    module = importlib.import_module(f"{configs.__name__}.{path.stem}")
    recipes = getattr(module, "RECIPES", {})
    for name, description in recipes.items():
      print(f"  configs/{path.name}:{name:<26} {description}")

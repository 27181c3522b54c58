"""The command that lists what a recipe can be made of."""

from diffdistill.data import SOURCES
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.run import recipes
from diffdistill.sampling import SAMPLERS


def list_all() -> None:
  """Prints objectives, networks, data sources, samplers, recipes."""
  for title, table in (
    ("objectives", OBJECTIVES),
    ("networks", NETWORKS),
    ("classifiers", CLASSIFIERS),
    ("samplers", SAMPLERS),
    ("data sources", SOURCES),
  ):
    print(f"{title}:")
    for name in table:
      print(f"  {name:<26} {table.summary(name)}")
  print("recipes:")
  for name, description in recipes.descriptions().items():
    print(f"  {name:<37} {description}")

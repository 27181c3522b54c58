"""The command that lists what a recipe can be made of."""

import importlib.resources

from diffdistill.data import SOURCES
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.run import recipes
from diffdistill.sampling import SAMPLERS

PAPERS = importlib.resources.files("diffdistill.objectives") / "papers.bib"


def list_all(bibtex: bool) -> None:
  """Prints the objectives, networks, data sources, samplers and recipes.

  Args:
    bibtex: whether to print only the papers of the objectives, in BibTeX.
  """
  if bibtex:
    print(PAPERS.read_text(), end="")
    return
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

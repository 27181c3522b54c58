"""docs/papers.md has each objective, with the passes of its update."""

import dataclasses
import pathlib
import re

from diffdistill.diffusion.guidance import Guidance
from diffdistill.objectives import OBJECTIVES
from tests.objectives.bench import VARIANTS, build

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "papers.md"
# A row of the page: the objective, a field of it, and the number of passes.
ROW = re.compile(
  r"^\| `(\w+)`(?:, `\w+=(\w+)`)? \|(?:[^|]*\|){3} ([\d.]+)", re.MULTILINE
)
NO_PAPERS = {"classification", "denoising", "fine_tuning"}
# A text of the page has this objective.
NO_ROW = {"guidance_distillation"}


def test_the_page_has_the_passes_of_each_objective():
  written = {}
  for kind, value, passes in ROW.findall(PAGE.read_text()):
    variant = f"{kind} {value}"
    written[variant if variant in VARIANTS else kind] = float(passes)
  assert {name.split()[0] for name in written} == (
    set(OBJECTIVES) - NO_PAPERS - NO_ROW
  )
  assert len(written) == len(ROW.findall(PAGE.read_text()))
  for name, passes in written.items():
    objective = build(name)
    plain = {"guidance": Guidance(), "own_share": 0.0}
    changed = {n: v for n, v in plain.items() if hasattr(objective, n)}
    objective = dataclasses.replace(objective, **changed)
    units = [objective.passes(t, 4, False).units for t in objective.cycle]
    assert sum(units) / len(units) == passes, name
  for kind in NO_ROW:
    assert f"`{kind}`" in PAGE.read_text()

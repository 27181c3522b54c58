"""The rows of an evaluation as a table for other tools.

Each row has the columns run, round, paper, num_steps and sampler, then what was
measured, then the settings of the evaluation, such as metric, detector, seed
and num_images. So the rows of several evaluations can be one table.
"""

from collections.abc import Mapping
from typing import Any


def tidy_rows(
  summary: Mapping[str, Any], run: str, config: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The rows of one evaluation, with its settings in each row.

  Args:
    summary: the content of evaluation.json.
    run: the name of the run.
    config: the config of the run, as plain values.
  """
  settings = {name: value for name, value in summary.items() if name != "rows"}
  exported = summary.get("exported", "").split(", ")
  result = []
  for row in summary["rows"]:
    model = row["model"]
    names = {
      "run": run,
      "round": model,
      "paper": row.get("paper"),
      "num_steps": row["steps"],
      "sampler": None if model in exported else _sampler(config, model),
    }
    measures = {k: v for k, v in row.items() if k not in ("model", "steps")}
    # A row's own value is more exact than the setting: a kept row may have been
    # timed on other devices.
    result.append({**names, **measures, **settings, **measures})
  return result


def _sampler(config: Mapping[str, Any], model: str) -> str | None:
  """The kind of a model's sampler: that of its stage, or else of the run."""
  stage = config.get("stages", {}).get(model.split("/")[0], {})
  section = stage.get("sampler") or config.get("sampler") or {}
  return section.get("kind")

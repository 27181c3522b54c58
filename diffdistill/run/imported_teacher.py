"""Puts the model of an imported teacher into the config of a run."""

from etils import epath

from diffdistill.fields import Fields, plain
from diffdistill.interop import model_folder
from diffdistill.networks import NETWORKS
from diffdistill.run.sections import raw_section, stages_of_run
from diffdistill.run.workdir import stored_config
from diffdistill.training import checkpoint

# The recipe decides these fields of the network, not the imported model.
RECIPE_S_OWN = ("dropout", "dtype", "remat", "two_times", "told_guidance")


def with_imported(fields: Fields, workdir: epath.Path | None) -> Fields:
  """The fields of a config, with the model of its imported teacher, if any.

  Args:
    fields: the fields of the whole config.
    workdir: the workdir of the run; a teacher that was already imported into it
      is not read again.

  Raises:
    ValueError: if the imported model cannot be read.
  """
  for name, stage in stages_of_run(fields).items():
    source = str(stage.get("source", ""))
    objective = raw_section(stage, "objective", f"stages.{name}")
    if (
      not source.startswith("imported:")
      or objective.get("kind") == "classification"
    ):
      continue
    if workdir is not None and checkpoint.has_final(workdir / name):
      stored = plain(stored_config(workdir))
      model = stored["model"]
      conditional = stored["data"].get("conditional", False)
    else:
      place = epath.Path(source.removeprefix("imported:"))
      model, conditional = _imported(place, raw_section(fields, "model"))
    data = {**raw_section(fields, "data"), "conditional": conditional}
    fields = {**fields, "model": model, "data": data}
  return fields


def _imported(place: epath.Path, recipe: Fields) -> tuple[Fields, bool]:
  """Makes the model section of an imported teacher; says if it has labels."""
  model = model_folder.describe(place)
  own = raw_section(recipe, "network", "model")
  cls = NETWORKS[model.network["kind"]]
  kept = {
    name: own[name]
    for name in RECIPE_S_OWN
    if name in own and hasattr(cls, name)
  }
  # The null label exists only if the label-dropout rate is above 0. Only
  # training uses the value of the rate.
  rate = recipe.get("label_dropout") or 0.1
  section = {
    "network": {**model.network, **kept},
    "schedule": model.schedule,
    "output": model.output,
    "precondition": model.precondition,
    "label_dropout": rate if model.null_label else 0.0,
    **{name: recipe[name] for name in ("dropout_bits",) if name in recipe},
    "origin": model.origin,
    "license": model.license,
  }
  return section, model.num_classes > 0

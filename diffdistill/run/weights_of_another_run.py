"""Weights that another run made, or that were imported."""

from typing import Any

import jax
from etils import epath

from diffdistill.arrays import Params
from diffdistill.fields import Fields, plain
from diffdistill.interop import model_folder
from diffdistill.interop.model import Model, misfits
from diffdistill.interop.torch_resnet import load_resnet
from diffdistill.networks.network import add_branches, branches_of
from diffdistill.run.experiment import Experiment
from diffdistill.run.workdir import stored_config
from diffdistill.system import hosts
from diffdistill.training import checkpoint
from diffdistill.training.sharding import tree_shardings
from diffdistill.training.stage import SECOND_MOMENTS, Stage

# Fields of the model section that say what a denoiser's weights mean.
MEANING = ("schedule", "output", "precondition")


def load_outside(
  run: Experiment, stage: Stage, name: str, source: str
) -> Params:
  """Loads weights from outside the run onto this run's devices.

  Args:
    run: the run that needs the weights.
    stage: the stage that needs the weights.
    name: the role of the weights in the stage: "teacher", "classifier", ...
    source: "path:DIR", a finished round of another run; or "imported:PATH", a
      folder that `diffdistill import` wrote, or the file of a classifier.

  Raises:
    ValueError: if there are no such weights, or they do not fit this run's
      networks.
  """
  kind, _, place = source.partition(":")
  read = _imported if kind == "imported" else _of_another_run
  params = read(run, stage, name, epath.Path(place))
  network: Any = run.denoiser.network
  if name == "classifier":
    network = stage.classifier
  elif name != SECOND_MOMENTS:
    params = _with_branches(run, params)
  wanted = jax.eval_shape(network.init, jax.random.key(0))
  for where, ours, theirs in misfits(wanted, params):
    raise ValueError(
      f"{_field(stage, name)} is {source!r}, whose weights do not fit:"
      f" {where} is {theirs} there and {ours} here; pass the config it was"
      " made with"
    )
  return params


def _with_branches(run: Experiment, params: Params) -> Params:
  """Adds new weights for branches that only this run's network has.

  A network that reads a second time or a guidance weight may begin from weights
  of a network that does not. Every start of a run draws the same branches.
  """
  network, key = run.denoiser.network, jax.random.key(run.seed)
  filled = add_branches(network, params, key)
  if filled is params:
    return params
  # Place only the new weights: the other ones are already on their devices.
  places, embed = tree_shardings(filled, run.layout)["embed"], filled["embed"]
  new = [name for name in branches_of(network) if name not in params["embed"]]
  placed = {n: jax.tree.map(hosts.place, embed[n], places[n]) for n in new}
  return {**filled, "embed": {**embed, **placed}}


def _of_another_run(
  run: Experiment, stage: Stage, name: str, round_dir: epath.Path
) -> Params:
  """Loads weights of a finished round of another run.

  For the name "teacher" it loads the round's teacher; without one, its student.

  Raises:
    ValueError: if the other run's weights have another schedule, output or
      preconditioning, or if they are of a student that is told its guidance.
  """
  product = name
  if name == "teacher" and checkpoint.has_final(round_dir):
    names = checkpoint.product_names(round_dir)
    product = "teacher" if "teacher" in names else "student"
  params = checkpoint.load_final(round_dir, product, run.layout)
  for folder in (round_dir.parent, round_dir.parent.parent):
    if name == "classifier" or not (folder / "config.json").exists():
      continue
    config = stored_config(folder)
    if product == "student":
      made_by = round_dir.relative_to(folder).parts[0]
      _check_untold(_field(stage, name), config["stages"].get(made_by, {}))
    theirs, ours = config["model"], run.config["model"]
    for field in MEANING:
      if theirs.get(field) != ours.get(field):
        raise ValueError(
          f"{_field(stage, name)} is of a run whose model.{field} is"
          f" {theirs.get(field)}, not {ours.get(field)}; pass the same"
        )
  return params


def _check_untold(field: str, made_by: Fields) -> None:
  """Refuses a student that is told a guidance weight, by its stage's fields."""
  objective = made_by.get("objective", {})
  if objective.get("told") or objective.get("kind") == "guidance_distillation":
    raise ValueError(
      f"{field} is of a student that is told a guidance weight, which only a"
      " later stage of its own run tells it; pass another teacher"
    )


def _imported(
  run: Experiment, stage: Stage, name: str, path: epath.Path
) -> Params:
  """Loads imported weights and places them on the devices."""
  if name == "classifier":
    params = load_resnet(path, stage.classifier)
  else:
    model = model_folder.load(path)
    _check_imported(run, _field(stage, name), model)
    params = model.params
  return jax.tree.map(hosts.place, params, tree_shardings(params, run.layout))


def _check_imported(run: Experiment, field: str, model: Model) -> None:
  """Refuses an imported model that does not fit this run.

  The model must have the image shape and the classes of the data, the schedule,
  output and preconditioning of this run, and be a teacher.
  """
  for what, theirs, ours in (
    ("images of", model.image_shape, run.source.image_shape),
    ("classes:", model.num_classes, run.num_classes),
  ):
    if theirs != ours:
      raise ValueError(
        f"{field} is a model with {what} {theirs}, but the data has {what}"
        f" {ours}; pass a data source that fits it"
      )
  if model.num_steps:
    raise ValueError(
      f"{field} is a student of {model.num_steps} steps, which knows no other"
      " times; pass a teacher"
    )
  own = plain(run.config["model"])
  for what in MEANING:
    if getattr(model, what) != own[what]:
      raise ValueError(
        f"{field} is a model whose {what} is {getattr(model, what)}, but the"
        f" run's is {own[what]}; import one teacher a run"
      )


def _field(stage: Stage, name: str) -> str:
  """The config field that tells a stage where its outside weights are."""
  field = "source" if stage.source else f"frozen.{name}"
  return f"stages.{stage.name}.{field}"

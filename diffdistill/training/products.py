"""The trees that a finished round keeps."""

from diffdistill.arrays import Params
from diffdistill.training.optimizers import EMA
from diffdistill.training.stage import SECOND_MOMENTS
from diffdistill.training.state import TrainState, product_of
from diffdistill.training.training_stage import Training


def products_of(
  stage: Training, state: TrainState, best: Params | None
) -> dict[str, Params]:
  """The trees that a finished round keeps, by name.

  They are the trained trees, and the averages of the product. If best weights
  were selected, these are the product, and the weights at the end of the round
  are `last_<name>`. A teacher's second moments are kept beside the teacher.

  Args:
    stage: the stage of the round.
    state: the state at the end of the round.
    best: the weights that were selected; None to keep those at the end.
  """
  name = stage.product
  products = {**state.params, name: product_of(stage.objective, state)}
  for average, tree in state.averages[name].items():
    if average.startswith(f"{EMA}_"):
      products[f"{name}_{average}"] = tree
  if best is not None:
    products |= {name: best, f"last_{name}": products[name]}
  if name == "teacher":
    optimizer = stage.all_optimizers[name]
    products[SECOND_MOMENTS] = optimizer.second_moments(state.opt_state[name])
  return products

import jax
import jax.numpy as jnp

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.fine_tuning import FineTuning
from diffdistill.objectives.objective import Objective
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import batch_of, check_copies, loss_of


def objective(kind):
  process = GaussianProcess(schedule=Cosine())
  denoiser = Denoiser(
    network=GaussianMixture(schedule=Cosine()),
    process=process,
    precondition=Identity(noise="time"),
  )
  return kind(denoiser=denoiser, sampler=DDIM(process=process))


def test_fine_tuning_is_denoising_from_a_copy_of_the_teacher():
  tuning, training = objective(FineTuning), objective(Denoising)
  assert isinstance(tuning, Objective)
  # The trained tree starts as a copy of the frozen teacher, but no update needs
  # the frozen teacher.
  assert tuple(tuning.trees) == tuning.starts == ("teacher",)
  assert tuning.needs == {}
  key = jax.random.key(0)
  # Use weights that differ from the weights that init draws, so that a copy is
  # recognised.
  teacher = training.init(jax.random.key(1), {})["teacher"]
  params = tuning.init(key, {"teacher": teacher})
  assert set(params) == {"teacher"}
  check_copies(params, teacher)
  batch = batch_of(jnp.linspace(-1, 1, 16).reshape(8, 1, 1, 2))
  (loss, metrics), (expected, _) = (
    loss_of(goal, params, batch, key) for goal in (tuning, training)
  )
  assert loss == expected > 0
  assert "teacher/loss" in metrics

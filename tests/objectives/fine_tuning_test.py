import jax
import jax.numpy as jnp
import numpy as np

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.fine_tuning import FineTuning
from diffdistill.objectives.objective import Objective
from diffdistill.sampling.ddim import DDIM


def objective(kind):
  process = GaussianProcess(schedule=Cosine())
  denoiser = Denoiser(
    network=GaussianMixture(schedule=Cosine()),
    process=process,
    precondition=Identity(noise="time"),
  )
  return kind(denoiser=denoiser, sampler=DDIM(process=process))


def test_it_is_denoising_from_a_copy_of_the_teacher():
  tuning, training = objective(FineTuning), objective(Denoising)
  assert isinstance(tuning, Objective)
  assert tuning.needs == tuning.trains == ("teacher",)
  key = jax.random.key(0)
  # Not what init would draw from its key.
  teacher = training.init(jax.random.key(1), {})["teacher"]
  params = tuning.init(key, {"teacher": teacher})
  assert set(params) == {"teacher"}
  for name, value in params["teacher"].items():
    np.testing.assert_array_equal(value, teacher[name])
    assert (
      value.unsafe_buffer_pointer() != teacher[name].unsafe_buffer_pointer()
    )
  batch = {"image": jnp.linspace(-1, 1, 16).reshape(8, 1, 1, 2)}
  (loss, metrics), (expected, _) = (
    goal.loss("teacher", params, {"teacher": teacher}, batch, key, {})
    for goal in (tuning, training)
  )
  assert loss == expected > 0
  assert "teacher/loss" in metrics

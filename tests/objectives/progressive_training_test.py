"""Trains all rounds of progressive distillation of a toy.

All rounds use one compiled update.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives.progressive import Progressive
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import OneTime, batch_of, loss_of

MIXTURE = {
  "means": jnp.array([[0.5, 0.3], [-0.6, 0.1], [0.1, -0.5]]).reshape(
    3, 1, 1, 2
  ),
  "std": jnp.array([0.3, 0.4, 0.35]),
  "logits": jnp.array([0.0, 0.5, -0.3]),
}
ROUNDS = (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Corrected(OneTime):
  """The exact denoiser plus a perceptron whose output is zero at first."""

  exact: GaussianMixture
  mlp: LinenNetwork

  def init(self, key):
    return self.mlp.init(key)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    return self.exact.apply(MIXTURE, x, t) + self.mlp.apply(params, x, t)


def distance(a, b):
  """Computes the root mean square of a - b over the root mean square of b."""
  return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


def test_one_step_of_the_last_student_is_close_to_the_teacher_s_16():
  exact = GaussianMixture(schedule=Cosine())
  mlp = MLP(width=64, depth=2, out_channels=2)
  network = Corrected(exact, LinenNetwork(module=mlp, image_shape=(1, 1, 2)))
  process = GaussianProcess(schedule=Cosine())
  denoiser = Denoiser(
    network=network, process=process, precondition=Identity(noise="time")
  )
  sampler = DDIM(process=process, clip=False)
  goal = Progressive(denoiser=denoiser, sampler=sampler)
  optimizer, traces = optax.adam(3e-3), []

  @jax.jit
  def distil(teacher, num_steps):
    """Trains the student of one round: 150 updates of a copy of the teacher."""
    traces.append(num_steps)

    def update(state, key):
      params, opt_state = state
      key_data, key_loss = jax.random.split(key)
      batch = batch_of(exact.sample(MIXTURE, key_data, 256))
      now = {"num_steps": num_steps, "guided": 0}

      def loss(params):
        trees = {"teacher": teacher, **params}
        return loss_of(goal, trees, batch, key_loss, **now)[0]

      updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    params = goal.init(jax.random.key(1), {"teacher": teacher})
    keys = jax.random.split(jax.random.key(num_steps), 150)
    (params, _), _ = jax.lax.scan(
      update, (params, optimizer.init(params)), keys
    )
    return params["student"]

  @jax.jit
  def sample(params, num_steps):
    noise = jax.random.normal(jax.random.key(5), (2048, 1, 1, 2))
    x = sampler.start(noise, num_steps)
    return sampler(denoiser.bind(params), x, jax.random.key(0), num_steps)

  first = teacher = network.init(jax.random.key(0))
  truth = np.asarray(sample(first, 2 * ROUNDS[0]))
  for num_steps in ROUNDS:
    teacher = distil(teacher, jnp.int32(num_steps))
    # The measured distance from the teacher's images after the last round is 3
    # %.
    assert distance(np.asarray(sample(teacher, num_steps)), truth) < 0.05
  assert len(traces) == 1
  # The comparison: one step of the first teacher makes only the mean of the
  # data.
  assert distance(np.asarray(sample(first, 1)), truth) > 0.5

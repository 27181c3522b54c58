import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine, LinearBeta
from diffdistill.diffusion.timesteps import LogitNormal
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives.denoising import Denoising
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.flow_map import FlowMap
from tests.objectives.given import (
  MIXTURE,
  Listener,
  batch_of,
)
from tests.objectives.given import loss_of as loss_of_trees


def objective(
  network,
  schedule=Cosine(),  # noqa: B008
  conditional=False,
  null_label=None,
  **fields,
):
  process = GaussianProcess(schedule=schedule)
  denoiser = Denoiser(
    network=network,
    process=process,
    precondition=Identity(noise="time"),
    conditional=conditional,
    null_label=null_label,
  )
  return Denoising(denoiser=denoiser, sampler=DDIM(process=process), **fields)


def exact(schedule=Cosine(), **fields):  # noqa: B008
  return objective(GaussianMixture(schedule=schedule), schedule, **fields)


def loss_of(goal, params, x0, key, label=None):
  return loss_of_trees(goal, {"teacher": params}, batch_of(x0, label), key)


def images(n, key):
  return GaussianMixture(schedule=Cosine()).sample(MIXTURE, key, n)


@pytest.mark.parametrize("schedule", [Cosine(), EDM()])
@pytest.mark.parametrize("weighting", ["truncated_snr", "constant"])
def test_the_exact_denoiser_has_the_least_loss(schedule, weighting):
  goal = exact(schedule, weighting=weighting)

  @jax.jit
  def loss(params):
    key_data, key = jax.random.split(jax.random.key(0))
    return loss_of(goal, params, images(8192, key_data), key)[0]

  best = loss(MIXTURE)
  for change in (
    {"means": MIXTURE["means"] + 0.1},
    {"means": MIXTURE["means"] * 0.8},
    {"std": MIXTURE["std"] * 1.3},
    {"std": MIXTURE["std"] * 0.75},
    {"logits": jnp.array([0.7, 0.0])},
  ):
    assert loss(MIXTURE | change) > best


def test_the_gradient_at_the_exact_denoiser_has_zero_mean():
  goal = exact(weighting="constant")

  @jax.jit
  def gradients(params):
    def one(key):
      key_data, key = jax.random.split(key)
      x0 = images(512, key_data)
      return jax.grad(lambda p: loss_of(goal, p, x0, key)[0])(params)

    return jax.vmap(one)(jax.random.split(jax.random.key(1), 64))

  def scores(params):
    """Returns the mean gradients over 64 batches, in standard errors."""
    return np.concatenate(
      [
        np.ravel(np.mean(g, 0) / (np.std(g, 0) / 8))
        for g in map(np.asarray, jax.tree.leaves(gradients(params)))
      ]
    )

  # Without a bias, each of these eight numbers has a variance of about 1.
  assert np.abs(scores(MIXTURE)).max() < 3.5
  assert np.abs(scores(MIXTURE | {"std": jnp.array([0.4, 0.3])})).max() > 10


def test_a_zero_network_has_the_mean_square_of_the_data():
  mlp = LinenNetwork(
    module=MLP(width=8, depth=1, out_channels=2), image_shape=(1, 1, 2)
  )
  goal = objective(mlp)
  x0 = images(256, jax.random.key(1))

  @jax.jit
  def metrics(key):
    params = goal.init(key, {})
    assert set(params) == {"teacher"}
    return loss_of(goal, params["teacher"], x0, key)[1]

  total, count = metrics(jax.random.key(0))["teacher/x0_mse"]
  assert float(count) == 256
  expected = np.mean(np.square(x0))
  assert float(total / count) == pytest.approx(expected, rel=1e-6)


def test_dropout_has_another_key_in_each_update():
  heard = []
  goal = objective(Listener(heard))
  for seed in (0, 1):
    loss_of(goal, jnp.zeros(()), jnp.ones((2, 1, 1, 1)), jax.random.key(seed))
  one, other = (jax.random.key_data(call["key"]) for call in heard)
  assert not np.array_equal(one, other)


def test_the_share_of_hidden_labels_is_label_dropout():
  heard, n = [], 4096
  goal = objective(
    Listener(heard), conditional=True, null_label=3, label_dropout=0.2
  )
  label = jnp.arange(n) % 3
  x0 = jnp.ones((n, 1, 1, 1))
  for seed in (0, 1):
    loss_of(goal, jnp.zeros(()), x0, jax.random.key(seed), label)
  one, other = (np.asarray(call["label"]) for call in heard)
  hidden = one == 3
  np.testing.assert_array_equal(one[~hidden], label[~hidden])
  # The tolerance is four standard errors of the measured share, which should be
  # 0.2.
  assert hidden.mean() == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(n))
  # The choice of hidden labels must not depend on the class, on the time, or on
  # the labels that another update hides.
  by_class = [hidden[k::3].mean() for k in range(3)]
  np.testing.assert_allclose(by_class, 0.2, atol=4 * 0.4 / np.sqrt(n / 3))
  for what in (heard[0]["t"], other == 3):
    assert np.corrcoef(hidden, what)[0, 1] == pytest.approx(0, abs=4 / 64)


@pytest.mark.parametrize("conditional", [False, True])
def test_only_a_conditional_network_gets_labels(conditional):
  heard = []
  goal = objective(Listener(heard), conditional=conditional)
  label = jnp.array([3, 1])
  x0 = jnp.ones((2, 1, 1, 1))
  loss_of(goal, jnp.zeros(()), x0, jax.random.key(0), label)
  if conditional:
    np.testing.assert_array_equal(heard[0]["label"], label)
  else:
    assert heard[0]["label"] is None


def test_x_t_is_the_data_diffused_to_time_t():
  heard, schedule = [], LinearBeta()
  goal = objective(Listener(heard), schedule, discrete_steps=1000)
  x0 = jnp.full((4096, 1, 1, 1), 0.5)
  loss_of(goal, jnp.zeros(()), x0, jax.random.key(0))
  x, t = heard[0]["x"], heard[0]["t"]
  i = np.round(1000 * np.asarray(t))
  np.testing.assert_array_equal(t, i / np.float32(1000))
  assert t.min() >= 0.001
  eps = (x.ravel() - 0.5 * schedule.alpha(t)) / schedule.sigma(t)
  # The noise must be independent of the time. The tolerance is four standard
  # errors.
  assert float(eps.mean()) == pytest.approx(0, abs=4 / 64)
  assert float(eps.std()) == pytest.approx(1, abs=4 / 90)
  assert np.corrcoef(eps, t)[0, 1] == pytest.approx(0, abs=4 / 64)


def test_snr_weighting_is_the_noise_prediction_loss_of_ddpm():
  """The loss must equal Eq.

  14 of Ho et al. 2020: the mean of ||eps - eps_hat||^2.
  """
  schedule, heard = LinearBeta(), []
  process = GaussianProcess(schedule=schedule)
  goal = Denoising(
    denoiser=Denoiser(
      network=Listener(heard),
      process=process,
      output="eps",
      precondition=Identity(noise="time"),
    ),
    sampler=DDIM(process=process),
    weighting="snr",
    discrete_steps=100,
  )
  x0 = images(256, jax.random.key(0))
  loss, _ = loss_of(goal, jnp.float32(0.3), x0, jax.random.key(1))
  x, t = heard[0]["x"], heard[0]["t"]
  alpha, sigma = process.coefficients(t, x)
  eps = (x - alpha * x0) / sigma
  expected = np.mean(np.square(eps - 0.3 * x))
  assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_an_unknown_weighting_and_negative_steps_are_refused():
  with pytest.raises(ValueError, match="weighting is 'x'"):
    exact(weighting="x")
  with pytest.raises(ValueError, match="discrete_steps is -1"):
    exact(discrete_steps=-1)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_label_dropout_out_of_range_is_refused(share):
  with pytest.raises(
    ValueError, match=rf"label_dropout is {share}; pass a val"
  ):
    objective(Listener([]), null_label=3, label_dropout=share)


@pytest.mark.parametrize(("share", "null_label"), [(0.1, None), (0.0, 3)])
def test_label_dropout_and_a_null_label_need_each_other(share, null_label):
  with pytest.raises(
    ValueError,
    match=f"label_dropout is {share}, but .* null label is {null_label}; pass",
  ):
    objective(Listener([]), null_label=null_label, label_dropout=share)


def test_times_come_from_the_draw_of_the_objective():
  heard = []
  goal = objective(Listener(heard), draw=LogitNormal(mean=2.0, std=0.01))
  loss_of(goal, jnp.ones(()), jnp.zeros((8, 1, 1, 2)), jax.random.key(0))
  times = heard[0]["t"]
  assert len(set(times.tolist())) > 1
  np.testing.assert_allclose(times, jax.nn.sigmoid(2.0), atol=0.01)


def test_a_draw_of_continuous_times_is_refused_for_discrete_steps():
  with pytest.raises(ValueError, match="the draw LogitNormal is of continuous"):
    exact(draw=LogitNormal(), discrete_steps=4)


def test_a_teacher_is_not_made_for_the_sampler_of_two_times():
  with pytest.raises(ValueError, match="predicts at one time; pass sampler"):
    Denoising(
      denoiser=objective(Listener([])).denoiser,
      sampler=FlowMap(process=GaussianProcess(schedule=Cosine())),
    )

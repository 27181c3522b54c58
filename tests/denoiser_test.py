import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import UNCONDITIONAL, Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.prediction import (
  OUTPUTS,
  from_prediction,
  from_x0,
)
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine, RectifiedFlow
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork

MIXTURE = {
  "means": jnp.array([[0.5, 0.3], [-0.6, 0.1]]).reshape(2, 1, 1, 2),
  "std": jnp.array([0.3, 0.2]),
  "logits": jnp.array([0.0, 0.7]),
}
T = jnp.array([0.1, 0.4, 0.6, 0.9])
X = jnp.array([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.1], [0.2, 1.5]]).reshape(
  4, 1, 1, 2
)


@dataclasses.dataclass(frozen=True)
class Spoken:
  """A network that gives a mixture's exact denoiser in the form `output`."""

  schedule: Cosine
  output: str
  two_times: ClassVar[bool] = False

  def init(self, key):
    return MIXTURE

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    x0 = GaussianMixture(schedule=self.schedule).apply(params, x, t)
    coefficients = GaussianProcess(schedule=self.schedule).coefficients(t, x)
    prediction = from_x0(x0, x, *coefficients)
    if self.output == "both":
      return jnp.concatenate(prediction, axis=-1)
    return from_prediction(self.output, prediction, *coefficients)


@dataclasses.dataclass(frozen=True)
class Listener:
  """A network that outputs its input in bfloat16 and records its arguments."""

  heard: list
  two_times: bool = False

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    self.heard.append(
      {"x": x, "t": t, "label": condition.label, "s": s, "key": key}
    )
    return x.astype(jnp.bfloat16)


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()])
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_gives_the_same_prediction(schedule, output):
  denoiser = Denoiser(
    network=Spoken(schedule, output),
    process=GaussianProcess(schedule=schedule),
    output=output,
    precondition=Identity(noise="time"),
  )
  expected = GaussianMixture(schedule=schedule).apply(MIXTURE, X, T)
  actual = denoiser(MIXTURE, X, T)
  # The tolerance is for EDM. Its sigma(0.1) is 0.01, so eps has 100 times the
  # rounding error of x0.
  np.testing.assert_allclose(actual.x0, expected, atol=2e-5)
  alpha, sigma = denoiser.process.coefficients(T, X)
  line = alpha * actual.x0 + sigma * actual.eps
  np.testing.assert_allclose(line, X, atol=1e-5)
  bound = denoiser.bind(MIXTURE)(X, T)
  np.testing.assert_array_equal(bound.x0, actual.x0)


def test_preconditioning_scales_input_and_output():
  heard, process = [], GaussianProcess(schedule=EDM())
  denoiser = Denoiser(
    network=Listener(heard), process=process, precondition=EDMPrecondition()
  )
  actual = denoiser({}, X, T)
  c_skip, c_out, c_in, c_noise = (
    np.asarray(c)[:, None, None, None]
    for c in EDMPrecondition().scaling(EDM(), T)
  )
  np.testing.assert_allclose(heard[0]["x"], c_in * X, rtol=1e-6)
  np.testing.assert_allclose(heard[0]["t"], c_noise.ravel(), rtol=1e-6)
  raw = np.asarray((c_in * X).astype(jnp.bfloat16), np.float32)
  np.testing.assert_allclose(
    actual.x0, c_skip * X + c_out * raw, rtol=1e-5, atol=1e-7
  )


def test_a_prediction_is_float32_even_if_the_network_is_bfloat16():
  process = GaussianProcess(schedule=Cosine())
  actual = Denoiser(network=Listener([]), process=process)({}, X, T)
  assert actual.x0.dtype == jnp.float32
  assert actual.eps.dtype == jnp.float32


@pytest.mark.parametrize("conditional", [False, True])
def test_the_network_gets_labels_second_time_and_key(conditional):
  heard, key = [], jax.random.key(3)
  denoiser = Denoiser(
    network=Listener(heard),
    process=GaussianProcess(schedule=Cosine()),
    precondition=Identity(noise="time"),
    conditional=conditional,
  )
  label, s = jnp.array([0, 1, 2, 3]), T / 2
  condition = Condition(label=label)
  denoiser({}, X, T, condition, s=s, key=key)
  denoiser.bind({}, condition)(X, T)
  told, sampled = heard
  np.testing.assert_array_equal(told["s"], s)
  assert told["key"] is key
  assert sampled["key"] is None
  assert sampled["s"] is None
  for call in heard:
    if conditional:
      np.testing.assert_array_equal(call["label"], label)
    else:
      assert call["label"] is None


@dataclasses.dataclass(frozen=True)
class Answers(Listener):
  """A network that outputs one fixed number for each label."""

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    super().apply(params, x, t, condition, s=s, key=key)
    return jnp.ones_like(x) * params[condition.label][:, None, None, None]


def conditional_denoiser(heard, null_label):
  return Denoiser(
    network=Answers(heard),
    process=GaussianProcess(schedule=Cosine()),
    conditional=True,
    null_label=null_label,
  )


def test_a_guided_model_calls_the_network_with_and_without_labels():
  heard, key = [], jax.random.key(3)
  denoiser = conditional_denoiser(heard, null_label=2)
  params, label = jnp.array([1.0, -1.0, 0.25]), jnp.array([0, 1, 1, 0])
  guided = denoiser.bind(
    params, Condition(label=label), Guidance(weight=2.0), scale=0.5, key=key
  )(X, T)
  # Both calls must drop the same units; otherwise their difference would be
  # noise.
  told, untold = heard
  assert told["key"] is untold["key"] is key
  # Label 2 stands for no label. So the guided x0 is 1 + (1 - 0.25) or -1 + (-1
  # - 0.25).
  np.testing.assert_allclose(
    guided.x0[:, 0, 0, 0], [1.75, -2.25, -2.25, 1.75], rtol=1e-6
  )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_in_one_pass_predicts_the_same(scale):
  module = MLP(width=8, depth=1, out_channels=2, num_classes=3)
  network = LinenNetwork(module=module, image_shape=(1, 1, 2), num_classes=3)
  params = jax.tree.map(
    lambda leaf: jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape),
    jax.eval_shape(network.init, jax.random.key(0)),
  )
  calls = []

  class Counted(LinenNetwork):
    def apply(self, params, x, *told, **more):
      calls.append(len(x))
      return super().apply(params, x, *told, **more)

  denoiser = Denoiser(
    network=Counted(module=module, image_shape=(1, 1, 2), num_classes=3),
    process=GaussianProcess(schedule=Cosine()),
    conditional=True,
    null_label=2,
  )
  condition = Condition(label=jnp.array([0, 1, 1, 0]))
  found = []
  for together in (False, True):
    guidance = Guidance(weight=1.5, interval=(0.3, 0.8), together=together)
    model = denoiser.bind(params, condition, guidance, scale=scale)
    found.append(jax.jit(model)(X, T))
  assert calls == [4, 4, 8, 4]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found
  )


@pytest.mark.parametrize("guidance", [None, Guidance(weight=0.0)])
@pytest.mark.parametrize("null_label", [None, 2])
def test_a_model_without_guidance_calls_the_network_once(guidance, null_label):
  heard, label = [], jnp.array([0, 1, 1, 0])
  denoiser = conditional_denoiser(heard, null_label)
  params = jnp.array([1.0, -1.0, 0.25])
  denoise = denoiser.bind(params, Condition(label=label), guidance)
  heard.clear()
  x0 = denoise(X, T).x0
  (call,) = heard
  np.testing.assert_array_equal(call["label"], label)
  np.testing.assert_array_equal(x0[:, 0, 0, 0], [1, -1, -1, 1])


def test_a_model_without_a_null_label_cannot_be_guided():
  denoiser = conditional_denoiser([], None)
  params, label = jnp.zeros(3), jnp.zeros(4, jnp.int32)
  with pytest.raises(
    ValueError, match=r"guidance weight is 1\.5, but .*; pass .*label_dropout"
  ) as error:
    denoiser.bind(params, Condition(label=label), Guidance(weight=1.5))
  assert "\n" not in str(error.value)
  known = conditional_denoiser([], null_label=2)
  assert known.check_guidance(Guidance(weight=1.5)) == 2


def test_a_prediction_is_not_clipped():
  process = GaussianProcess(schedule=Cosine())
  actual = Denoiser(network=Listener([]), process=process)({}, 8 * X, T)
  assert float(jnp.abs(actual.x0).max()) == pytest.approx(12, rel=0.01)


def test_an_unknown_output_is_refused():
  with pytest.raises(ValueError, match="output is 'noise'; pass one of x0"):
    Denoiser(
      network=Listener([]),
      process=GaussianProcess(schedule=Cosine()),
      output="noise",
    )


def test_edm_preconditioning_needs_the_output_x0():
  with pytest.raises(ValueError, match="pass output=x0"):
    Denoiser(
      network=Listener([]),
      process=GaussianProcess(schedule=EDM()),
      output="v",
      precondition=EDMPrecondition(),
    )


@pytest.mark.parametrize("two_times", [False, True])
def test_only_a_network_of_two_times_gets_the_second_time(two_times):
  heard, process = [], GaussianProcess(schedule=Cosine())
  network = Listener(heard, two_times=two_times)
  denoiser = Denoiser(network=network, process=process)
  model, s = denoiser.bind({}), T / 2
  model(X, T, s)
  model(X, T)
  expected = process.schedule.angle(s) * 2 / jnp.pi
  if two_times:
    np.testing.assert_allclose(heard[0]["s"], expected, rtol=1e-6)
  else:
    assert heard[0]["s"] is None
  assert heard[1]["s"] is None

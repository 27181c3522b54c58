"""The denoiser: D(params, x_t, t, s) -> (x0, eps).

A denoiser is a network with its preconditioning and the meaning of its output.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import (
  UNCONDITIONAL,
  Condition,
  Image,
  Key,
  Params,
  Time,
)
from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.diffusion.precondition import (
  EDMPrecondition,
  Identity,
  Precondition,
  Scaling,
)
from diffdistill.diffusion.prediction import (
  Model,
  Prediction,
  output_channels,
  to_prediction,
)
from diffdistill.diffusion.process import GaussianProcess, expand_like
from diffdistill.networks.network import LinenNetwork, Network, Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
  """A denoiser without its weights; teacher and student share one.

  Args:
    network: the architecture.
    process: the diffusion process that makes x_t from x0.
    output: the network's output: x0, eps, v, velocity, score or both.
    precondition: scales the network's input and output.
    conditional: whether the network gets the condition of a batch as an input.
    null_label: the class that means "no label", for models that were trained
      with label dropout. None means that the model cannot be guided.
  """

  network: Network
  process: GaussianProcess
  output: str = "x0"
  precondition: Precondition = dataclasses.field(default_factory=Identity)
  conditional: bool = False
  null_label: int | None = None

  def __post_init__(self):
    output_channels(self.output, 1)
    if isinstance(self.precondition, EDMPrecondition) and self.output != "x0":
      raise ValueError(
        f"output is {self.output!r}, but EDM's preconditioning makes x0 of the"
        " raw output; pass output=x0"
      )

  def __call__(
    self,
    params: Params,
    x_t: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    s: Time | None = None,
    key: Key | None = None,
  ) -> Prediction:
    """Predicts the clean image and the noise in x_t, in float32, not clipped.

    Args:
      params: the weights of the network.
      x_t: the noisy images.
      t: the time of each image.
      condition: the condition of each image.
      s: the time that the step aims at; only a network with two times takes it.
        None means s = t.
      key: the key of dropout; None means no dropout.
    """
    scaling, inputs, aim = self._told(x_t, t, condition, s)
    raw = self.network.apply(params, *inputs, s=aim, key=key)
    return self._prediction(raw, x_t, t, scaling)

  def look(
    self,
    params: Params,
    x_t: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    names: tuple[str, ...],
    s: Time | None = None,
    key: Key | None = None,
  ) -> tuple[Prediction, Mapping[str, Array]]:
    """Predicts, and gives features of the same pass by name, in float32.

    If the prediction is not used, the compiler removes the layers after the
    last feature.

    Args:
      params, x_t, t, condition, s, key: see `__call__`.
      names: the names of features, from the property `features`.

    Raises:
      ValueError: if the network has no feature of one of these names.
    """
    if not isinstance(self.network, LinenNetwork):
      raise ValueError(
        f"features are {list(names)}, but {type(self.network).__name__} has"
        " none; pass a network of layers"
      )
    scaling, inputs, aim = self._told(x_t, t, condition, s)
    raw, features = self.network.look(
      params, *inputs, names=names, s=aim, key=key
    )
    return self._prediction(raw, x_t, t, scaling), features

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the features that `look` can give."""
    network = self.network
    return network.features if isinstance(network, LinenNetwork) else ()

  @property
  def told_guidance(self) -> bool:
    """Whether the network also reads a guidance weight."""
    return getattr(self.network, "told_guidance", False)

  @property
  def exact(self) -> "Denoiser":
    """This denoiser in float32, with the same weights; use it in jax.jvp."""
    if not isinstance(self.network, LinenNetwork):
      return self
    return dataclasses.replace(self, network=self.network.exact)

  @property
  def portable(self) -> "Denoiser":
    """This denoiser with attention that every platform can compute."""
    if not isinstance(self.network, LinenNetwork):
      return self
    return dataclasses.replace(self, network=self.network.portable)

  def _told(
    self, x_t: Image, t: Time, condition: Condition, s: Time | None
  ) -> tuple[Scaling, tuple[Image, Time, Condition], Time | None]:
    """Returns the scaling, and the x, t, condition and s for the network."""
    schedule = self.process.schedule
    scaling = self.precondition.scaling(schedule, t)
    aim = None if s is None else self.precondition.aim(schedule, t, s)
    condition = condition if self.conditional else UNCONDITIONAL
    x = expand_like(scaling.c_in, x_t) * x_t
    return scaling, (x, scaling.c_noise, condition), aim

  def _prediction(
    self, raw: Output, x_t: Image, t: Time, scaling: Scaling
  ) -> Prediction:
    c_skip, c_out = (
      expand_like(c, x_t) for c in (scaling.c_skip, scaling.c_out)
    )
    raw = raw.astype(jnp.float32)
    skip = c_skip * x_t
    if self.output == "both":
      skip = jnp.concatenate([skip, skip], axis=-1)
    alpha, sigma = self.process.coefficients(t, x_t)
    return to_prediction(self.output, skip + c_out * raw, x_t, alpha, sigma)

  def bind(
    self,
    params: Params,
    condition: Condition = UNCONDITIONAL,
    guidance: Guidance | Told | None = None,
    *,
    scale: float | Float[Array, ""] | Float[Array, " b"] = 1.0,
    key: Key | None = None,
  ) -> Model:
    """Returns this denoiser as a function of only x_t, t and s.

    Some samplers pass s to every model, and a network with one time ignores it.

    Args:
      params: the weights of the network.
      condition: the condition of each image.
      guidance: the guidance, or the weight that the network is told; None, a
        weight of 0 and a told weight add no network pass.
      scale: a factor of the guidance's weight, or one for each image; may be
        traced.
      key: the key of dropout, the same in every call; None means no dropout.

    Raises:
      ValueError: if there is guidance but the model has no null label.
    """

    def tell(
      condition: Condition, x_t: Image, t: Time, s: Time | None
    ) -> Prediction:
      aim = s if self.network.two_times else None
      return self(params, x_t, t, condition, s=aim, key=key)

    def told(x_t: Image, t: Time, s: Time | None = None) -> Prediction:
      return tell(condition, x_t, t, s)

    if isinstance(guidance, Told):
      weight = guidance.weight

      def told_weight(x_t: Image, t: Time, s: Time | None = None) -> Prediction:
        weights = jnp.full(t.shape, weight, jnp.float32)
        return tell(condition._replace(guidance=weights), x_t, t, s)

      return told_weight

    if guidance is None or guidance.weight == 0:
      return told
    null = self.check_guidance(guidance)

    def untold(x_t: Image, t: Time, s: Time | None = None) -> Prediction:
      return tell(Condition(label=jnp.full(t.shape, null)), x_t, t, s)

    def both(
      x_t: Image, t: Time, s: Time | None = None
    ) -> tuple[Prediction, Prediction]:
      # The two rows of an image are neighbours, so they lie on one device.
      x_t, t, s, label = jax.tree.map(
        lambda a: jnp.repeat(a, 2, axis=0),
        (x_t, t, s, jnp.asarray(condition.label)),
      )
      label = jnp.where(jnp.arange(len(t)) % 2 == 1, null, label)
      pairs = jax.tree.map(
        lambda a: a.reshape(-1, 2, *a.shape[1:]),
        tell(Condition(label=label), x_t, t, s),
      )
      one, other = (
        jax.tree.map(lambda a, i=i: a[:, i], pairs) for i in range(2)
      )
      return one, other

    return guidance(told, untold, scale, both)

  def check_guidance(self, guidance: Guidance) -> int:
    """The label that means "no label".

    Raises:
      ValueError: if this model has no such label.
    """
    if self.null_label is None:
      raise ValueError(
        f"guidance weight is {guidance.weight}, but the teacher was not trained"
        " without its labels; pass data.conditional=True and a"
        " model.label_dropout above 0, or a weight of 0"
      )
    return self.null_label

"""A sampler that always takes one step from noise to the clean image.

  (1)  x0:          the image is the network's x0 at t = 1
  (2)  difference:  the image is x_1 - eps, without the 1/alpha of x0 = (x_1 -
                    sigma eps) / alpha, which is 157 on the linear schedule

Luhman & Luhman 2021 write equation (2) as x_T - net(x_T, T).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model
from diffdistill.sampling.sampler import Memory, Sampler

FORMS = ("x0", "difference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(Sampler):
  """Jumps from t = 1 to the clean image (Luhman & Luhman 2021).

  Args:
    form: "x0" for equation (1), or "difference" for equation (2), which is
      meant for networks whose output is eps.
  """

  form: str = "x0"

  def __post_init__(self):
    super().__post_init__()
    if self.form not in FORMS:
      raise ValueError(f"form is {self.form!r}; pass one of {', '.join(FORMS)}")

  def step(
    self,
    model: Model,
    x_t: Image,
    memory: Memory,
    t: Time,
    s: Time,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> tuple[Image, Memory]:
    if self.form == "x0":
      return self.predict(model, x_t, t, s).x0, memory
    image = x_t - model(x_t, t, s).eps
    return jnp.clip(image, -1, 1) if self.clip else image, memory

  def __call__(
    self,
    model: Model,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""] = 1,
    stop: int | Int[Array, ""] | None = None,
  ) -> Image:
    return super().__call__(model, x, key, 1, stop)

  def predicted(
    self,
    model: Model,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""] = 1,
    done: int | Int[Array, ""] = 0,
  ) -> Image:
    """The image, because the first prediction is the result."""
    return self(model, x, key)

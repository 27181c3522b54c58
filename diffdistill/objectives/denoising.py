"""Pre-training: the denoising loss that makes a teacher.

  L = E_t,eps [ w(logsnr(t)) ||x0 - D(x_t, t)||^2 ],  x_t = alpha x0 + sigma eps

Salimans & Ho 2022, Algorithm 1; in discrete time, this is Ho et al. 2020, Eq.
14, if the network predicts eps and the weighting is snr.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from diffdistill.arrays import Batch, Key
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.timesteps import TimeDraw, Uniform, draw_discrete
from diffdistill.diffusion.weighting import weight
from diffdistill.objectives.labels import check_label_dropout, hide_labels
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Tree,
  Trees,
  Turn,
  summed,
  weighted_loss,
)
from diffdistill.ranges import Range, Share, check_ranges
from diffdistill.sampling.flow_map import FlowMap
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
  """Pre-training of a teacher (Salimans & Ho 2022, Algorithm 1).

  Args:
    denoiser: the architecture of the teacher.
    weighting: a name of `diffusion.weighting`.
    draw: the distribution of continuous times.
    discrete_steps: if above 0, t = i / discrete_steps; 0 draws continuous
      times.
    label_dropout: the share of labels that the network does not see in
      training, so that the teacher can be guided; 0 for a denoiser without a
      null label.
    sampler: the sampler that the teacher is used with.
  """

  denoiser: Denoiser
  sampler: Sampler
  weighting: str = "truncated_snr"
  draw: TimeDraw = dataclasses.field(default_factory=Uniform)
  discrete_steps: Annotated[int, Range(0, 10**6)] = 0
  label_dropout: Share = 0.0

  rounds: ClassVar[str] = "one"

  def __post_init__(self):
    weight(self.weighting, jnp.zeros(1))
    check_ranges(self)
    if self.discrete_steps and self.draw != Uniform():
      raise ValueError(
        f"discrete_steps is {self.discrete_steps}, but the draw"
        f" {type(self.draw).__name__} is of continuous times; pass"
        " discrete_steps=0 or draw.kind=uniform"
      )
    check_label_dropout(self.label_dropout, self.denoiser)
    if isinstance(self.sampler, FlowMap):
      raise ValueError(
        "the sampler is flow_map, but a teacher predicts at one time; pass"
        " sampler.kind=ddim, and flow_map to the stage of a student"
      )

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"teacher": Tree()}

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, process = batch["image"], self.denoiser.process
    key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
    condition, _ = hide_labels(
      batch["condition"],
      self.denoiser.null_label,
      self.label_dropout,
      key_label,
    )
    if self.discrete_steps:
      t = draw_discrete(key_t, x0.shape[0], self.discrete_steps)
    else:
      t = self.draw(key_t, x0.shape[0], process.schedule)
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    prediction = self.denoiser(
      trees["teacher"],
      x_t,
      t,
      condition,
      key=key_dropout,
    )
    w = weight(self.weighting, process.schedule.logsnr(t))
    loss, mse = weighted_loss(x0, prediction.x0, w)
    metrics = {"teacher/loss": summed(loss), "teacher/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics

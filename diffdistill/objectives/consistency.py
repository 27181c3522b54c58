"""Consistency models: a student whose x0 is the same along a trajectory.

Song et al. 2023, Song & Dhariwal 2023 (iCT) and Geng et al. 2024 (ECT), in our
names (theirs on the right):

  student(x_t, t)            f_theta(x_t, t): the x0 of a denoiser
  target                     f_theta^-: the student itself, or its average
  t > s                      t_{n+1} > t_n, or t > r
  tau = sigma/alpha          t, the noise level

  (1)  (t, s) are neighbours, see diffusion/neighbours.py
  (2)  x_t = alpha_t x0 + sigma_t eps
  (3)  distillation: x_s is one step of the teacher's sampler from x_t
       training:     x_s = alpha_s x0 + sigma_s eps, with the same eps
  (4)  L = w rho( student(x_t, t) - sg target(x_s, s) ),
       w = 1 / (tau_t - tau_s), rho = pseudo-Huber with c = huber sqrt(d)

d is the number of values of an image, and sg stops the gradient. At s = 0 the
image is clean, and the target is x_s itself: this is the boundary f(x_0, 0) =
x_0, for every schedule and every output of the network. The preconditioning
`edm` with boundary=True has it in the network too.

Unlike the paper of 2023, the error is not LPIPS, and the decay of the target's
average does not change during training.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Condition, Image, Key, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.errors import pseudo_huber
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.neighbours import (
  GridNeighbours,
  Neighbours,
  noise_level,
)
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.process import expand_like
from diffdistill.diffusion.weighting import weight
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Tree,
  Trees,
  Turn,
  bind_teacher,
  summed,
  weighted_loss,
)
from diffdistill.ranges import Range, Share, check_ranges
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.heun import Heun
from diffdistill.sampling.renoising import Renoising
from diffdistill.sampling.sampler import Sampler

GAP = "gap"  # the weighting 1 / (tau_t - tau_s)
SOLVERS = {"ddim": DDIM, "heun": Heun}


def weight_of_gap(t_level: Time, s_level: Time) -> Float[Array, " b"]:
  """Computes 1 / (tau_t - tau_s), which is finite for equal times too."""
  return 1 / jnp.maximum(t_level - s_level, 1e-6 * t_level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Objective):
  """The parts that distillation and training of consistency models share.

  Args:
    denoiser: the architecture of the student, and of the teacher if any.
    sampler: the sampler that the student is made for: renoising.
    neighbours: how the times t and s are drawn, equation (1).
    huber: c / sqrt(d) of equation (4); 0 for the plain norm |e|. The default is
      that of Song & Dhariwal 2023, section 3.3.
    weighting: "gap" for 1 / (tau_t - tau_s), or a name of
      `diffusion.weighting`, at logsnr(t).
    target_decay: the decay of the student's average that is the target; 0 for
      the student itself, as in iCT and ECT.
    dropout: whether the networks have dropout. Student and target drop the same
      units.
  """

  denoiser: Denoiser
  sampler: Sampler
  neighbours: Neighbours = dataclasses.field(default_factory=GridNeighbours)
  huber: Annotated[float, Range(0, 10**4)] = 0.00054
  weighting: str = GAP
  target_decay: Share = 0.0
  dropout: bool = False

  rounds: ClassVar[str] = "any"

  def __post_init__(self):
    check_ranges(self)
    if self.weighting != GAP:
      weight(self.weighting, jnp.zeros(1))
    _check_sampler(self.sampler, self.neighbours)

  @property
  def trees(self) -> Mapping[str, Tree]:
    averages = {"target": self.target_decay} if self.target_decay else {}
    return {"student": Tree(start=self._start, averages=averages)}

  @property
  def _start(self) -> str:
    return "teacher"

  @abc.abstractmethod
  def _earlier(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    clean: Prediction,
    t: Time,
    s: Time,
    key: Key,
    now: Now,
  ) -> Image:
    """Computes x_s of equation (3); `clean` has the x0 and eps of x_t."""

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process, schedule = self.denoiser.process, self.denoiser.process.schedule
    key_times, key_eps, key_step, key_dropout = jax.random.split(key, 4)
    t, s = self.neighbours(key_times, x0.shape[0], schedule, now.progress)
    eps = jax.random.normal(key_eps, x0.shape)
    x_t, clean = process.diffuse(x0, eps, t), Prediction(x0=x0, eps=eps)
    x_s = self._earlier(trees, condition, x_t, clean, t, s, key_step, now)

    def end(tree: str, x: Image, time: Time) -> Image:
      key = key_dropout if self.dropout else None
      model = self.denoiser.bind(trees[tree], condition, key=key)
      return model(x, time, jnp.zeros_like(time)).x0

    student = end("student", x_t, t)
    name = "student/target" if self.target_decay else "student"
    target = jnp.where(expand_like(s, x_s) > 0, end(name, x_s, s), x_s)
    error = student - jax.lax.stop_gradient(target)
    c = self.huber * x0[0].size ** 0.5
    loss = self._weight(t, s) * pseudo_huber(error, c)
    _, mse = weighted_loss(x0, student, jnp.ones_like(t))
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics

  def _weight(self, t: Time, s: Time) -> Float[Array, " b"]:
    schedule = self.denoiser.process.schedule
    if self.weighting != GAP:
      return weight(self.weighting, schedule.logsnr(t))
    # A drawn t = 0 has the lowest noise of the schedule.
    return weight_of_gap(schedule.tau(t), noise_level(schedule, s))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Consistency):
  """Consistency distillation of a teacher (Song et al. 2023, Algorithm 2).

  Args:
    denoiser, sampler, neighbours, huber, weighting, target_decay, dropout: see
      `Consistency`.
    solver: the step of the teacher in equation (3): "heun" or "ddim". On a
      variance-preserving schedule heun needs neighbours on the karras curve,
      whose noise ends at 80: see sampling/heun.py.
    guidance: the guidance of the teacher.
  """

  solver: str = "heun"
  guidance: Guidance = dataclasses.field(default_factory=Guidance)

  def __post_init__(self):
    super().__post_init__()
    if self.solver not in SOLVERS:
      raise ValueError(
        f"solver is {self.solver!r}; pass one of {', '.join(SOLVERS)}"
      )

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    teacher = SOLVERS[self.solver].evaluations * self.guidance.passes(guided)
    return Passes(forward=1 + teacher, gradient=1)

  def _earlier(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    clean: Prediction,
    t: Time,
    s: Time,
    key: Key,
    now: Now,
  ) -> Image:
    solver = SOLVERS[self.solver](process=self.denoiser.process, clip=False)
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, self.guidance, now
    )
    return solver.step(teacher, x_t, (), t, s, key, now.num_steps)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Consistency):
  """Consistency training from data (iCT, ECT; Song et al. 2023, Algorithm 3).

  Args:
    denoiser, sampler, neighbours, huber, weighting, target_decay, dropout: see
      `Consistency`.
    from_teacher: whether the student starts as a copy of a teacher, as in ECT;
      otherwise its weights are drawn at random, as in iCT.
  """

  from_teacher: bool = True

  @property
  def _start(self) -> str:
    return "teacher" if self.from_teacher else ""

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(forward=1, gradient=1)

  def _earlier(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    clean: Prediction,
    t: Time,
    s: Time,
    key: Key,
    now: Now,
  ) -> Image:
    return self.denoiser.process.arrive(clean, s)


def _check_sampler(sampler: Sampler, neighbours: Neighbours) -> None:
  """Refuses a sampler that uses the student as it was not trained.

  Raises:
    ValueError: if the sampler is not renoising, or begins with more noise than
      the student is trained with.
  """
  if not isinstance(sampler, Renoising):
    raise ValueError(
      "a consistency student is made for renoising, not"
      f" {type(sampler).__name__}; pass sampler.kind=renoising"
    )
  with jax.ensure_compile_time_eval():
    first = float(sampler.time(1, 1))
    last = float(neighbours.noisiest(sampler.process.schedule))
  if first > last + 1e-5:
    raise ValueError(
      f"the sampler begins at t = {first:.6g}, but the student is trained up to"
      f" t = {last:.6g}; pass sampler.grid=karras, or neighbours whose draw"
      " reaches that time"
    )

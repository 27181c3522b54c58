"""Classifier-based feature distillation: a student that matches features.

Sun et al. 2023, in our names (theirs on the right):

  target, student x0         x_T, x_S: the target of `progressive`, the student
  features, logits           f, p: of the frozen classifier
  temperature                tau, of the teacher's side only
  dataset_weight             beta, alpha in their code
  entropy_share              gamma, beta in their code

  (1)  L_CFD = KL( softmax(f(target) / tau) || softmax(f(student)) ), summed
       over the features; the gradient goes through the classifier's input
  (2)  H   = mean over the batch of the entropy of softmax(p(student))
  (3)  Div = sum_c m_c log m_c, m the batch's mean of softmax(p(student))
  (4)  L   = L_CFD + beta [gamma H + (1 - gamma) Div]

H makes the student put each image into one class, and Div spreads the batch
over the classes. The predictions of teacher and student are not clipped, no
term compares pixels, and no term is weighted by the noise level. tau < 1
sharpens the teacher's distribution; a student that equals its target has zero
gradient only if tau = 1 and beta = 0. The paper uses (4) for the last few
rounds, after progressive rounds.

Unlike the paper, the times are those of `progressive`: t in [0, 1], with a last
step to exactly s = 0. The paper's times are indices, and its cleanest index
still has some noise.

A Frechet distance that is measured on the features that taught a student makes
the student look too good. Related features do so too: for example the features
of Inception, if another ImageNet classifier taught the student.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Key, Scalar
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.objectives.objective import (
  Classifier,
  Loss,
  Now,
  Objective,
  Passes,
  Trees,
  Turn,
  bind_teacher,
  summed,
)
from diffdistill.objectives.progressive import (
  check_sampler,
  draw_two_steps,
  two_step_target,
)
from diffdistill.ranges import Range, check_ranges
from diffdistill.sampling.sampler import Sampler

CLASSIFIER_INPUTS = ("as_trained", "reference_mismatch")


@runtime_checkable
class NormalisingClassifier(Classifier, Protocol):
  """A classifier that normalises its images, with a variant that does not."""

  @property
  def unnormalised(self) -> Classifier: ...


def feature_kl(
  target: Float[Array, "b f"],
  student: Float[Array, "b f"],
  temperature: float,
) -> Float[Array, " b"]:
  """Computes equation (1) for the features of each example."""
  log_p = jax.nn.log_softmax(target / temperature, axis=-1)
  log_q = jax.nn.log_softmax(student, axis=-1)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def entropy(logits: Float[Array, "b k"]) -> Float[Array, " b"]:
  """Computes the entropy of each image's classes, in nats; its mean is (2)."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def diversity(logits: Float[Array, "b k"]) -> Scalar:
  """Computes (3): minus the entropy of a batch's mean class distribution."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(logits.shape[0])
  return jnp.sum(jnp.exp(log_mean) * log_mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFeatures(Objective):
  """Classifier-based feature distillation (Sun et al. 2023), equation (4).

  One object is used in all rounds; now.num_steps differs between rounds.

  Args:
    denoiser: the architecture of teacher and student.
    classifier: the network that computes the features that are matched; its
      weights are frozen.
    sampler: the sampler that the student is made for: DDIM on a uniform grid.
    temperature: tau, above 0; the authors' code has 0.9 for DenseNet201 and
      0.95 for ResNet18.
    dataset_weight: beta, 0 or more; the authors' code has 0 for DenseNet201 and
      0.003 for ResNet18.
    entropy_share: gamma, in [0, 1]; the authors' code has 0.75.
    classifier_input: "as_trained"; or "reference_mismatch", which gives raw
      images in [-1, 1] to a classifier that was trained on normalised images,
      as the authors' code does.
    guidance: the guidance of the first round's teacher; students are not
      guided.
  """

  denoiser: Denoiser
  classifier: Classifier
  sampler: Sampler
  temperature: Annotated[float, Range(1e-3, 1000)] = 0.95
  dataset_weight: Annotated[float, Range(0, 10**6)] = 0.003
  entropy_share: Annotated[float, Range(0, 1)] = 0.75
  classifier_input: str = "as_trained"
  guidance: Guidance = dataclasses.field(default_factory=Guidance)

  rounds: ClassVar[str] = "halving"

  def __post_init__(self):
    check_sampler(self.sampler)
    check_ranges(self)
    usual = ClassifierFeatures.entropy_share
    if self.dataset_weight == 0 and self.entropy_share != usual:
      raise ValueError(
        f"entropy_share is {self.entropy_share}, but dataset_weight is 0, so"
        " that nothing is shared; pass a dataset_weight above 0, or leave"
        f" entropy_share at {usual}"
      )
    if self.classifier_input not in CLASSIFIER_INPUTS:
      raise ValueError(
        f"classifier_input is {self.classifier_input!r}; pass one of"
        f" {', '.join(CLASSIFIER_INPUTS)}"
      )
    self._fed()

  def _fed(self) -> Classifier:
    """Returns the classifier, with or without its normalisation of images."""
    if self.classifier_input == "as_trained":
      return self.classifier
    if not isinstance(self.classifier, NormalisingClassifier):
      raise ValueError(
        f"classifier_input is {self.classifier_input!r}, but a"
        f" {type(self.classifier).__name__} does not normalise its images; pass"
        " as_trained"
      )
    return self.classifier.unnormalised

  @property
  def needs(self) -> Mapping[str, str]:
    return {"teacher": "denoiser", "classifier": "classifier"}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(
      forward=2 * self.guidance.passes(guided),
      gradient=1,
      classifier=1,
      classifier_gradient=1,
    )

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process, classifier = self.denoiser.process, self._fed()
    x_t, t, mid, s = draw_two_steps(process, x0, key, now.num_steps)
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, self.guidance, now
    )
    target = two_step_target(process, teacher, x_t, t, mid, s)
    wanted = classifier.apply(trees["classifier"], target).features
    target, wanted = jax.lax.stop_gradient((target, wanted))
    student = self.denoiser(trees["student"], x_t, t, condition).x0
    seen = classifier.apply(trees["classifier"], student)
    loss = kl = feature_kl(wanted, seen.features, self.temperature)
    mse = jnp.mean(jnp.square(target - student), axis=(1, 2, 3))
    metrics = {"student/feature_kl": summed(kl), "student/x0_mse": summed(mse)}
    if self.dataset_weight > 0:
      unsure, even = entropy(seen.logits), diversity(seen.logits)
      share = self.entropy_share
      loss = kl + self.dataset_weight * (share * unsure + (1 - share) * even)
      metrics["student/entropy"] = summed(unsure)
      metrics["student/diversity"] = summed(jnp.full_like(unsure, even))
    return jnp.mean(loss), {"student/loss": summed(loss), **metrics}

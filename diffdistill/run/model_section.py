"""The denoiser, sampler and classifiers that a config describes.

Some of their fields are in no config. A network is given its number of channels
and classes, a sampler the model's process, and a classifier the shape of the
images.
"""

import functools
import math
from typing import Any

import jax

from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.prediction import output_channels
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Schedule, Shifted
from diffdistill.fields import Fields
from diffdistill.fields.builder import split
from diffdistill.interop.model import Model
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.network import THREEFRY, LinenNetwork, Network
from diffdistill.run.sections import BUILDER, ModelSection, ShiftSection
from diffdistill.sampling.sampler import Sampler

LARGEST_NETWORK = 10**11


def denoiser_of(model: Model) -> Denoiser:
  """The denoiser of an imported or exported model."""
  fields = {
    name: getattr(model, name)
    for name in ("network", "schedule", "output", "precondition")
  }
  return denoiser_of_section(
    BUILDER.build("model", ModelSection, fields),
    model.image_shape,
    model.num_classes,
    model.null_label,
  )


def sampler_of(model: Model, denoiser: Denoiser) -> Sampler:
  """The sampler of an imported student; DDIM for a teacher."""
  return sampler_of_section(model.sampler or {"kind": "ddim"}, denoiser)


def sampler_of_section(fields: Fields, denoiser: Denoiser) -> Sampler:
  """The sampler of a `sampler` section."""
  given = {"process": denoiser.process}
  return BUILDER.build("sampler", Sampler, fields, given)


def denoiser_of_section(
  model: ModelSection,
  image_shape: tuple[int, int, int],
  num_classes: int,
  null_label: bool,
) -> Denoiser:
  """The denoiser of a `model` section.

  Args:
    model: the section.
    image_shape: (h, w, c).
    num_classes: the number of classes that the denoiser is given; 0 if it is
      given no class.
    null_label: whether one more class stands for "no class", for guidance.

  Raises:
    ValueError: if fields of the network or the schedule do not fit.
  """
  known = num_classes + null_label
  module = BUILDER.choose(
    "model.network",
    NETWORKS,
    model.network,
    {
      "out_channels": output_channels(model.output, image_shape[-1]),
      "num_classes": known,
    },
  )
  if model.dropout_bits != THREEFRY and not has_dropout(module):
    raise ValueError(
      f"model.dropout_bits is {model.dropout_bits!r}, but the network has no"
      f" dropout; pass a model.network.dropout above 0, or {THREEFRY!r}"
    )
  return Denoiser(
    network=LinenNetwork(
      module=module,
      image_shape=image_shape,
      num_classes=known,
      dropout_bits=model.dropout_bits,
    ),
    process=GaussianProcess(schedule=_schedule(model.schedule, image_shape[0])),
    output=model.output,
    conditional=num_classes > 0,
    null_label=num_classes if null_label else None,
    precondition=model.precondition,
  )


def has_dropout(module: Any) -> bool:
  """Whether a network drops anything in training."""
  rates = getattr(module, "dropout", 0.0)
  return any(rates) if isinstance(rates, tuple) else rates > 0


def _schedule(fields: Fields, image_size: int) -> Schedule:
  """The schedule, shifted if it was made for another image size."""
  shift, fields = split(ShiftSection, fields)
  path = "model.schedule"
  base_size = BUILDER.build(path, ShiftSection, shift).shift_from
  base = BUILDER.build(path, Schedule, fields)
  if not base_size:
    return base
  return Shifted(base=base, image_size=image_size, base_size=base_size)


def classifier_of_section(
  path: str, fields: Fields, source: Source
) -> LinenClassifier:
  """Builds the classifier of a section and traces it.

  Args:
    path: the path of the section.
    fields: the fields of the classifier and of its network.
    source: the source of the images to classify.

  Raises:
    ValueError: if fields do not fit each other or the images.
  """
  around, fields = split(LinenClassifier, fields)
  module = BUILDER.choose(
    path, CLASSIFIERS, {"num_classes": source.num_classes, **fields}
  )
  given = {"module": module, "image_shape": source.image_shape}
  classifier = BUILDER.make(path, LinenClassifier, around, given)
  trace(path, classifier)
  return classifier


def trace(path: str, network: Network | LinenClassifier) -> None:
  """Refuses a network that does not fit its images, before it is trained.

  Args:
    path: the path of its section.
    network: the network to trace; nothing is compiled.

  Raises:
    ValueError: if the network does not fit its images, or has too many
      parameters.
  """
  try:
    count = num_parameters(network)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if count > LARGEST_NETWORK:
    raise ValueError(
      f"{path} is a network of {count:,} parameters; pass smaller fields, for"
      f" at most {LARGEST_NETWORK:,}"
    )


@functools.lru_cache(maxsize=32)
def num_parameters(network: Network | LinenClassifier) -> int:
  """The number of parameters of a network; nothing is compiled."""
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

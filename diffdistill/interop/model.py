"""A denoiser with its weights, as it is imported and exported.

Its fields have the same names and meanings as in a recipe's `model` section.
"""

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Annotated

import jax
import numpy as np

from diffdistill.arrays import Params
from diffdistill.diffusion.prediction import output_channels
from diffdistill.fields import Fields
from diffdistill.fields.field_type import check_type
from diffdistill.networks import NETWORKS
from diffdistill.networks.network import LinenNetwork
from diffdistill.ranges import GUIDANCE, Classes, Range, Side, check_ranges

# The pattern of a licence's short name, as used by SPDX and Hugging Face.
LICENSE = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"
MAX_ORIGIN = 1000  # The most characters; each student adds its teacher's name.
# The shape of an array; None if the array is missing.
Shape = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A denoiser's weights, and the fields that give them a meaning.

  Args:
    network: the fields of model.network, with its kind. It lacks out_channels
      and num_classes, because they follow from the other arguments.
    schedule: the fields of model.schedule, with its kind.
    output: the network's output, see diffusion/prediction.py.
    precondition: the fields of model.precondition, with its kind.
    image_shape: (h, w, c).
    num_classes: the number of classes that the network is given; 0 for none.
    label_counts: the images of each class in its training data; empty if
      unknown.
    null_label: whether one more class stands for no label, so that the model
      can be guided.
    params: the tree of the network's weights, float32.
    origin: the source of the weights, one line for the model card.
    license: the name of the weights' licence; empty if it is unknown.
    sampler: the fields of a student's sampler section, with its kind; None for
      a teacher.
    num_steps: the steps that a student was made for; 0 for a teacher.
    told: the lowest and the highest guidance weight that a student has learned
      to be told; empty if it is told none.
    guidance: the guidance weight that it is told if no other is asked for.
  """

  network: Fields
  schedule: Fields
  output: str
  precondition: Fields
  image_shape: tuple[Side, Side, Side]
  params: Params
  num_classes: Classes = 0
  label_counts: tuple[Annotated[int, Range(0, 2**62)], ...] = ()
  null_label: bool = False
  origin: str = ""
  license: str = ""
  sampler: Fields | None = None
  num_steps: Annotated[int, Range(0, 10**5)] = 0
  told: tuple[Annotated[float, GUIDANCE], ...] = ()
  guidance: Annotated[float, GUIDANCE] = 0.0

  def __post_init__(self):
    for field, hint in typing.get_type_hints(Model).items():
      check_type(field, getattr(self, field), hint)
    check_ranges(self)
    if not self.origin.isprintable() or len(self.origin) > MAX_ORIGIN:
      raise ValueError(
        f"origin is {self.origin[:99]!r}; pass one line of at most"
        f" {MAX_ORIGIN} characters that can be printed"
      )
    if self.license and not re.fullmatch(LICENSE, self.license):
      raise ValueError(
        f"license is {self.license[:99]!r}; pass the short name of one, such"
        " as apache-2.0"
      )
    if self.told and not (
      len(self.told) == 2
      and self.told[0] <= self.guidance <= self.told[1]
      and self.network.get("told_guidance")
    ):
      raise ValueError(
        f"told is {self.told!r:.99} and guidance is {self.guidance}; pass"
        " (low, high) with a guidance between these, and a network with"
        " told_guidance=True"
      )
    counts = self.label_counts
    if counts and not (len(counts) == self.num_classes and any(counts)):
      raise ValueError(
        f"label_counts is {counts!r:.99}; pass one count for each of"
        f" {self.num_classes} classes, and one class with images"
      )


def network_of(model: Model) -> LinenNetwork:
  """Builds the network of a model, without its weights.

  Raises:
    ValueError: if the kind of network is unknown, or the network refuses a
      field.
  """
  known = model.num_classes + model.null_label
  fields = dict(model.network)
  kind = fields.pop("kind")
  if kind not in NETWORKS:
    raise ValueError(
      f"the network is {kind!r}; pass one of {', '.join(NETWORKS)}"
    )
  channels = output_channels(model.output, model.image_shape[-1])
  module = NETWORKS[kind](**fields, out_channels=channels, num_classes=known)
  return LinenNetwork(
    module=module, image_shape=model.image_shape, num_classes=known
  )


def check(model: Model) -> Model:
  """Returns the model if its weights are finite and fit its network.

  Raises:
    ValueError: if a weight is not finite or does not fit; the message names one
      array.
  """
  wanted = jax.eval_shape(network_of(model).init, jax.random.key(0))
  for path, due, given in misfits(wanted, model.params):
    raise ValueError(
      f"the weights do not fit their network: {path} is {given} where {due} is"
      " due; pass weights that are whole"
    )
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
    if not np.isfinite(leaf).all():
      raise ValueError(
        f"the weights at {jax.tree_util.keystr(path)} are not finite; pass"
        " those of a trained model"
      )
  return model


def misfits(
  wanted: Params, given: Params
) -> Iterator[tuple[str, Shape, Shape]]:
  """Yields (path, needed shape, given shape) for arrays that do not fit."""
  ours, theirs = (
    {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
    for leaves in map(jax.tree_util.tree_leaves_with_path, (wanted, given))
  )
  for path in sorted(ours.keys() | theirs.keys()):
    if ours.get(path) != theirs.get(path):
      yield path, ours.get(path), theirs.get(path)

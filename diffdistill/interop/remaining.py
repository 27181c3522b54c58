"""The tensors of a file, from which a network takes each of its weights."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from diffdistill.interop.tensors import Tensors

SHOWN = 99  # characters of a tensor's name in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remaining:
  """The tensors that no weight has been made of yet.

  Args:
    tensors: all of them at first, by name; `take` removes one.
    holder: the file or its content, for messages.
    network: the network that takes the tensors, for messages.
    remedy: what to do where the tensors do not fit, for messages.
  """

  tensors: Tensors
  holder: str
  network: str
  remedy: str

  def take(
    self,
    name: str,
    shape: tuple[int, ...] | None = None,
    *,
    reshape: bool = False,
  ) -> Float[np.ndarray, "..."]:
    """A tensor, in the shape that the network needs.

    Args:
      name: of the tensor.
      shape: that the network needs; None to check it elsewhere. A tensor may
        have further axes of length 1 at its end, as a convolution of one pixel
        has.
      reshape: whether to accept every shape of as many values.

    Raises:
      ValueError: for a tensor that is missing, is no array of finite numbers
        or has another shape.
    """
    tensor = self.tensors.pop(name, None)
    if not isinstance(tensor, np.ndarray):
      raise ValueError(
        f"{self.holder} has no tensor {name}, which {self.network} has;"
        f" {self.remedy}"
      )
    if not np.isfinite(tensor).all():
      raise ValueError(
        f"{self.holder}: the tensor {name} is not finite; pass trained weights"
      )
    if shape is None:
      return tensor
    further = (1,) * (tensor.ndim - len(shape))
    fits = tensor.shape == (*shape, *further)
    if not fits and not (reshape and tensor.size == math.prod(shape)):
      raise ValueError(
        f"{self.holder}: the tensor {name} has shape {tensor.shape}, but"
        f" {self.network} needs {shape}; {self.remedy}"
      )
    return tensor.reshape(shape)

  def check_empty(self) -> None:
    """Refuses a file with a tensor that the network has not taken.

    Raises:
      ValueError: where one is left.
    """
    if not self.tensors:
      return
    name = min(self.tensors)
    shown = name if name.isprintable() else repr(name)
    raise ValueError(
      f"{self.holder}: the tensor {shown[:SHOWN]} is none of {self.network};"
      f" {self.remedy}"
    )

"""Gives a network the tensors of a file, and notices missing or extra ones."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from diffdistill.interop.tensors import Tensors

SHOWN = 99  # The most characters of a tensor's name in a message.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remaining:
  """The tensors of a file that have not become weights of a network yet.

  Args:
    tensors: all tensors of the file, by name; `take` removes them one by one.
    holder: a text that names the file or its content, for messages.
    network: a text that names the network, for messages.
    remedy: a text for messages that says what to do if the tensors do not fit.
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
    """Takes a tensor in the shape that the network needs.

    Args:
      name: the name of the tensor.
      shape: the shape that the network needs; None if the caller checks it. A
        tensor may have further axes of length 1 at its end, as a convolution of
        one pixel has.
      reshape: whether to accept every shape with as many values.

    Raises:
      ValueError: if the tensor is missing, is not an array of finite numbers,
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
    """Refuses a file with tensors that the network has not taken.

    Raises:
      ValueError: if a tensor is left.
    """
    if not self.tensors:
      return
    name = min(self.tensors)
    shown = name if name.isprintable() else repr(name)
    raise ValueError(
      f"{self.holder}: the tensor {shown[:SHOWN]} is none of {self.network};"
      f" {self.remedy}"
    )

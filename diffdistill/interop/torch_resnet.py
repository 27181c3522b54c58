"""Reads a ResNet classifier from the file of a torch state dict.

The names are torchvision's: conv1.weight, bn1.running_mean,
layer1.0.conv1.weight, layer1.0.downsample.0.weight, fc.bias. BatchNorm at
inference becomes one scale and one bias:

  (1)  scale = gamma / sqrt(var + epsilon), bias = beta - mean scale
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from diffdistill.arrays import Params
from diffdistill.interop.remaining import Remaining
from diffdistill.interop.tensors import Tensors, read_tensors
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.resnet import TorchResNet

BATCHNORM_EPSILON = 1e-5  # torch's default, which these networks have

# A function that returns the tensor of a name. It refuses a tensor of another
# shape.
Take = Callable[[str, tuple[int, ...]], Float[np.ndarray, "..."]]


def load_resnet(path: epath.PathLike, classifier: LinenClassifier) -> Params:
  """Reads the weights of a `TorchResNet` from torch's file, as numpy arrays.

  Args:
    path: a file that ends in .safetensors, .pt or .pth.
    classifier: the network for these weights, with the depth, stem and classes
      of the file. The file does not say how its images were normalised, so
      classifier.normalisation must.

  Raises:
    ValueError: if the file is missing, damaged or has more than tensors; or if
      a tensor is missing, left over, of another shape or not finite. The
      message is one line and names it.
  """
  module = classifier.module
  if not isinstance(module, TorchResNet):
    raise ValueError(
      f"the classifier is a {type(module).__name__}; pass"
      " kind=torch_resnet in the stage's own classifier for weights of"
      " torchvision's names"
    )
  path = epath.Path(path)
  return from_torch(
    _torchvision_names(path, read_tensors(path)),
    jax.eval_shape(classifier.init, jax.random.key(0)),
    path=path,
    network=f"a ResNet of depth {module.depth}",
    remedy="pass the depth, stem, channels and classes of the file",
    epsilon=BATCHNORM_EPSILON,
    rename=_torch_name,
  )


def from_torch(
  tensors: Tensors,
  shapes: Mapping[str, Any],
  *,
  path: epath.Path,
  network: str,
  remedy: str,
  epsilon: float,
  rename: Callable[[str], str] = str,
) -> Params:
  """Builds a network's weights from tensors with torch's names and axes.

  Args:
    tensors: all tensors of the file, except counters of batches.
    shapes: the shapes of our tree: kernels and biases; scales and biases of
      norms.
    path: the path of the file, for messages.
    network: a text that names the network, for messages.
    remedy: a text for messages that says what to do if the tensors do not fit.
    epsilon: the epsilon of equation (1).
    rename: returns torch's name for our name of a layer.

  Raises:
    ValueError: if a tensor is missing, left over, of another shape or not
      finite.
  """
  left = Remaining(
    tensors=dict(tensors), holder=str(path), network=network, remedy=remedy
  )

  def take(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    return left.take(name, shape).astype(np.float64)

  params = _fill(shapes, "", take, epsilon, rename)
  left.check_empty()
  return jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), params)


def _fill(
  shapes: Mapping[str, Any],
  name: str,
  take: Take,
  epsilon: float,
  rename: Callable[[str], str],
) -> Params:
  """Fills a layer and the layers below it from torch's layer `name`."""
  if "scale" in shapes:
    shape = shapes["scale"].shape
    gamma, beta, mean, var = (
      take(f"{name}.{part}", shape)
      for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + epsilon)
    return {"scale": scale, "bias": beta - mean * scale}
  if "kernel" in shapes:
    # Our axes are (height, width, in, out) or (in, out). Torch's are (out, in,
    # height, width) or (out, in).
    *sides, inputs, outputs = shapes["kernel"].shape
    weight = take(f"{name}.weight", (outputs, inputs, *sides))
    layer = {"kernel": np.moveaxis(weight, (1, 0), (-2, -1))}
    if "bias" in shapes:
      layer["bias"] = take(f"{name}.bias", (outputs,))
    return layer
  return {
    child: _fill(
      below, f"{name}.{rename(child)}".strip("."), take, epsilon, rename
    )
    for child, below in shapes.items()
  }


def _torch_name(child: str) -> str:
  """Returns torch's name of our layer; `_torch_name("layer1_0")` is layer1.0.

  In a block, downsample_conv becomes downsample.0, and its norm downsample.1.
  """
  return child.replace("_conv", ".0").replace("_bn", ".1").replace("_", ".")


def _torchvision_names(path: epath.Path, tensors: Tensors) -> Tensors:
  """Keeps the tensors that inference needs, under torchvision's names."""
  renamed = {}
  for name, tensor in tensors.items():
    # torch's DataParallel puts this prefix before every name.
    new = name.removeprefix("module.").replace(".shortcut.", ".downsample.")
    # In most ResNets for CIFAR-10, the last layer is called "linear".
    new = "fc." + new[len("linear.") :] if new.startswith("linear.") else new
    if new in renamed:
      raise ValueError(f"{path} has {new} under two names; remove one")
    if not new.endswith(".num_batches_tracked"):
      renamed[new] = tensor
  return renamed

"""Reads the FID network's weights from the file that pytorch-fid uses.

Published distances are computed with these weights, so the file is identified
by the SHA-256 of its bytes. A converted file is refused too, since its origin
cannot be checked.
"""

import hashlib

import jax
from etils import epath

from diffdistill.arrays import Params
from diffdistill.interop.tensors import read_tensors
from diffdistill.interop.torch_resnet import from_torch
from diffdistill.networks.inception import LOGITS, inception

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BATCHNORM_EPSILON = 1e-3  # TensorFlow's value, as in torchvision's network


def load_inception(path: epath.PathLike, *, sha256: str = SHA256) -> Params:
  """Reads the weights of `networks.inception` as numpy arrays.

  The file also has a bias of the last layer. It is left out; see the network.

  Args:
    path: the file pt_inception-2015-12-05-6726825d.pth, under any name that
      ends in .pth.
    sha256: the digest of the file's bytes, in hexadecimal. Distances with a
      file other than the default one must not be called FID.

  Raises:
    ValueError: if the file is missing, truncated or another one; one line.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise ValueError(f"there is no file {path}; pass the path of {FILE}")
  found = hashlib.sha256(path.read_bytes()).hexdigest()
  if found != sha256:
    raise ValueError(
      f"{path} has SHA-256 {found}, not {sha256}: it is truncated, converted"
      f" or another file; pass {FILE} as pytorch-fid publishes it"
    )
  tensors = {
    name: tensor
    for name, tensor in read_tensors(path).items()
    if not name.endswith(".num_batches_tracked")
  }
  bias = tensors.pop("fc.bias", None)
  if bias is None or bias.shape != (LOGITS,):
    raise ValueError(
      f"{path} has no fc.bias of {LOGITS} numbers, which Inception of"
      f" 2015-12-05 has; pass {FILE}"
    )
  shapes = jax.eval_shape(inception((8, 8, 3)).init, jax.random.key(0))
  return from_torch(
    tensors,
    shapes,
    path=path,
    network="Inception of 2015-12-05",
    remedy=f"pass {FILE}",
    epsilon=BATCHNORM_EPSILON,
  )

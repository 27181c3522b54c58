"""Writes a sampler with its weights as one file that needs only jax to run.

The file is made by jax.export: StableHLO for CPU, CUDA and TPU, any batch size,

  images in [-1, 1] = f(noise of unit variance, label or None, seed)

with float32 noise (b, h, w, c), int32 labels (b,) and a uint32 seed, which only
stochastic samplers read. The script beside the file draws the same images as
`diffdistill sample` with the same seed, number of images and batch size.
sampler.json has facts that the file cannot hold: the classes, their frequencies
in the data, and the number of steps.
"""

import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from jaxtyping import Array

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.ranges import STEPS, check_number
from diffdistill.system.files import write_atomically

# A sampler: (params, noise of unit variance, label, key, num_steps) -> images.
Sample = Callable[[Params, Image, Label | None, Key, Array], Image]

PLATFORMS = ("cpu", "cuda", "tpu")
# The most bytes of weights. Offsets in the file have 31 bits, and the program
# itself needs some bytes.
MAX_BYTES = 2 * 10**9
PROGRAM, DESCRIPTION = "model.stablehlo", "sampler.json"

SCRIPT = '''"""Images of model.stablehlo, in [-1, 1], to images.npy.

  pip install jax flatbuffers
  python sample.py [number of images] [seed]
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from jax import export


def labels_of(counts, number):
  """Labels for a number of images, as frequent as in the data."""
  total, labels, made = sum(counts), [], [0] * len(counts)
  for i in range(number):
    # The most urgent of the classes that may come now.
    due = [
      (-(-(j + 1) * total // n), label)
      for label, (j, n) in enumerate(zip(made, counts))
      if n and j * total // n <= i
    ]
    labels.append(min(due)[1])
    made[labels[-1]] += 1
  return np.array(labels, np.int32)


usage = argparse.ArgumentParser(description="Writes images.npy.")
usage.add_argument("number", nargs="?", type=int, default=16)
usage.add_argument("seed", nargs="?", type=int, default=0)
given = usage.parse_args()
folder = pathlib.Path(__file__).parent
said = json.loads((folder / "sampler.json").read_text())
file = folder / "model.stablehlo"
model = export.deserialize(bytearray(file.read_bytes()))
key = jax.random.key(given.seed, impl="threefry2x32")
key, index = jax.random.split(key)[0], np.arange(given.number)
keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
noise = jax.vmap(lambda k: jax.random.normal(k, {image_shape}))(keys)
counts = said["label_counts"]  # none: the model is told no class
label = labels_of(counts, given.number) if counts else None
np.save("images.npy", model.call(noise, label, np.uint32(given.seed)))
print(f"{given.number} images: images.npy")
'''


def export_sampler(
  sample: Sample,
  params: Params,
  image_shape: tuple[int, int, int],
  num_classes: int,
  num_steps: int,
  platforms: Sequence[str] = PLATFORMS,
) -> bytes:
  """Returns a sampler as the bytes of a file for `jax.export.deserialize`.

  Args:
    sample: (params, noise of unit variance, label, key, num_steps) -> images.
      Its network must compute attention by "xla", see `Denoiser.portable`.
    params: the weights of the network, on any devices of this process.
    image_shape: (h, w, c).
    num_classes: 0 for a model without labels.
    num_steps: the number of steps, which is fixed in the file.
    platforms: the platforms that the file can run on.

  Raises:
    ValueError: if a value is out of range, if the weights have two gigabytes or
      more, or if flatbuffers, which jax.export needs, is not installed.
  """
  check_number("num_steps", num_steps, STEPS)
  _check(params, platforms)
  # Copy the weights to the host, so that they become constants of the program.
  params = jax.tree.map(np.asarray, params)

  def program(noise, label, seed):
    # `Generator` gives the sampler the same key for its first batch.
    _, key = jax.random.split(jax.random.key(seed))
    key = jax.random.fold_in(key, 0)
    weights = jax.tree.map(jnp.asarray, params)
    steps = jnp.asarray(num_steps, jnp.int32)
    return sample(weights, noise, label, key, steps)

  (batch,) = export.symbolic_shape("b")
  label = jax.ShapeDtypeStruct((batch,), jnp.int32) if num_classes else None
  exported = export.export(jax.jit(program), platforms=platforms)(
    jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32),
    label,
    jax.ShapeDtypeStruct((), jnp.uint32),
  )
  try:
    return bytes(exported.serialize())
  except ImportError as error:
    raise ValueError(
      "jax.export writes with flatbuffers, which is not installed; pip install"
      " flatbuffers"
    ) from error


def _check(params: Params, platforms: Sequence[str]) -> None:
  """Refuses an unknown platform, and weights too large for the file."""
  for platform in platforms:
    if platform not in PLATFORMS:
      raise ValueError(
        f"the platform is {platform!r}; pass some of {', '.join(PLATFORMS)}"
      )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  if size > MAX_BYTES:
    raise ValueError(
      f"the weights have {size / 1e9:.1f} GB, and one StableHLO file holds"
      " 2; export them as safetensors"
    )


def write_sampler(
  folder: epath.PathLike,
  sampler: bytes,
  image_shape: tuple[int, int, int],
  label_counts: Sequence[int],
  num_steps: int,
) -> None:
  """Writes model.stablehlo, its description and its script.

  Args:
    folder: the folder to write into.
    sampler: the program, from `export_sampler`.
    image_shape: (h, w, c).
    label_counts: the images of each class in the data; the script draws classes
      with the same frequencies. Empty for a model without labels.
    num_steps: the number of steps of the sampler.
  """
  script = SCRIPT.replace("{image_shape}", str(tuple(image_shape)))
  folder = epath.Path(folder)
  write_atomically(folder / PROGRAM, sampler)
  write_atomically(folder / "sample.py", script)
  said = {
    "num_classes": len(label_counts),
    "label_counts": list(label_counts),
    "num_steps": num_steps,
  }
  write_atomically(folder / DESCRIPTION, json.dumps(said) + "\n")


def read_sampler(
  folder: epath.Path,
) -> tuple[export.Exported, tuple[int, ...], int]:
  """Reads the program of a folder, its label counts and its number of steps.

  Raises:
    ValueError: if the folder holds no sampler, or a damaged one.
  """
  path = folder / DESCRIPTION
  if not path.exists():
    raise ValueError(
      f"{folder} holds no sampler (it has no {DESCRIPTION}); make one with"
      f" `diffdistill export --format=stablehlo --out={folder}`"
    )
  try:
    said = json.loads(path.read_text())
    # Files of older versions have no frequencies of classes.
    counts = said.get("label_counts", [1] * int(said["num_classes"]))
    parts = tuple(map(int, counts)), int(said["num_steps"])
    program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  except Exception as error:
    # A damaged flatbuffer can raise any exception, so catch them all.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
      f"the sampler in {folder} is damaged ({reason}); export it again"
    ) from error
  return program, *parts

"""Stores features of pytorch-fid for seeded weights in golden_inception.json.

Run `python tests/interop/make_golden_inception.py` once where torch,
torchvision, pytorch-fid and scikit-learn are installed. It runs pytorch-fid's
network in float64. The test makes the same weights with numpy alone.
"""

import json
import pathlib
import sys
import types
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_inception.json")
HEIGHT, WIDTH = 72, 56  # The size of every image: not square, and below 299.
# Crops of scikit-learn's sample images, as (name, top, left).
CROPS = (("china.jpg", 150, 300), ("flower.jpg", 120, 280))
EVERY = 16  # the file stores every 16th feature and logit


def convolutions():
  """Yields (name, (outputs, inputs, height, width)) of each convolution."""
  yield "Conv2d_1a_3x3", (32, 3, 3, 3)
  yield "Conv2d_2a_3x3", (32, 32, 3, 3)
  yield "Conv2d_2b_3x3", (64, 32, 3, 3)
  yield "Conv2d_3b_1x1", (80, 64, 1, 1)
  yield "Conv2d_4a_3x3", (192, 80, 3, 3)
  for block, inputs, pool in (
    ("5b", 192, 32),
    ("5c", 256, 64),
    ("5d", 288, 64),
  ):
    yield f"Mixed_{block}.branch1x1", (64, inputs, 1, 1)
    yield f"Mixed_{block}.branch5x5_1", (48, inputs, 1, 1)
    yield f"Mixed_{block}.branch5x5_2", (64, 48, 5, 5)
    yield f"Mixed_{block}.branch3x3dbl_1", (64, inputs, 1, 1)
    yield f"Mixed_{block}.branch3x3dbl_2", (96, 64, 3, 3)
    yield f"Mixed_{block}.branch3x3dbl_3", (96, 96, 3, 3)
    yield f"Mixed_{block}.branch_pool", (pool, inputs, 1, 1)
  yield "Mixed_6a.branch3x3", (384, 288, 3, 3)
  yield "Mixed_6a.branch3x3dbl_1", (64, 288, 1, 1)
  yield "Mixed_6a.branch3x3dbl_2", (96, 64, 3, 3)
  yield "Mixed_6a.branch3x3dbl_3", (96, 96, 3, 3)
  for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    yield f"Mixed_{block}.branch1x1", (192, 768, 1, 1)
    yield f"Mixed_{block}.branch7x7_1", (c, 768, 1, 1)
    yield f"Mixed_{block}.branch7x7_2", (c, c, 1, 7)
    yield f"Mixed_{block}.branch7x7_3", (192, c, 7, 1)
    yield f"Mixed_{block}.branch7x7dbl_1", (c, 768, 1, 1)
    yield f"Mixed_{block}.branch7x7dbl_2", (c, c, 7, 1)
    yield f"Mixed_{block}.branch7x7dbl_3", (c, c, 1, 7)
    yield f"Mixed_{block}.branch7x7dbl_4", (c, c, 7, 1)
    yield f"Mixed_{block}.branch7x7dbl_5", (192, c, 1, 7)
    yield f"Mixed_{block}.branch_pool", (192, 768, 1, 1)
  yield "Mixed_7a.branch3x3_1", (192, 768, 1, 1)
  yield "Mixed_7a.branch3x3_2", (320, 192, 3, 3)
  yield "Mixed_7a.branch7x7x3_1", (192, 768, 1, 1)
  yield "Mixed_7a.branch7x7x3_2", (192, 192, 1, 7)
  yield "Mixed_7a.branch7x7x3_3", (192, 192, 7, 1)
  yield "Mixed_7a.branch7x7x3_4", (192, 192, 3, 3)
  for block, inputs in (("7b", 1280), ("7c", 2048)):
    yield f"Mixed_{block}.branch1x1", (320, inputs, 1, 1)
    yield f"Mixed_{block}.branch3x3_1", (384, inputs, 1, 1)
    yield f"Mixed_{block}.branch3x3_2a", (384, 384, 1, 3)
    yield f"Mixed_{block}.branch3x3_2b", (384, 384, 3, 1)
    yield f"Mixed_{block}.branch3x3dbl_1", (448, inputs, 1, 1)
    yield f"Mixed_{block}.branch3x3dbl_2", (384, 448, 3, 3)
    yield f"Mixed_{block}.branch3x3dbl_3a", (384, 384, 1, 3)
    yield f"Mixed_{block}.branch3x3dbl_3b", (384, 384, 3, 1)
    yield f"Mixed_{block}.branch_pool", (192, inputs, 1, 1)


def weights():
  """Returns a numpy state dict that keeps activations near one."""

  def draw(name, shape):
    # RandomState draws the same numbers in every version of numpy.
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.random_sample(shape).astype(np.float32)

  state = {}
  for name, shape in convolutions():
    scale = np.float32(np.sqrt(24 / np.prod(shape[1:])))
    key = f"{name}.conv.weight"
    state[key] = scale * (draw(key, shape) - np.float32(0.5))
    for part, low, width in (
      ("weight", 0.7, 0.6),
      ("bias", -0.1, 0.2),
      ("running_mean", -0.1, 0.2),
      ("running_var", 0.7, 0.6),
    ):
      key = f"{name}.bn.{part}"
      value = np.float32(low) + np.float32(width) * draw(key, shape[:1])
      state[key] = value
    state[f"{name}.bn.num_batches_tracked"] = np.array(7, np.int64)
  state["fc.weight"] = (draw("fc.weight", (1008, 2048)) - np.float32(0.5)) / 8
  state["fc.bias"] = draw("fc.bias", (1008,))
  return state


def images():
  """Returns two random and two natural images as uint8, channels last."""
  from sklearn.datasets import load_sample_image

  random = np.random.RandomState(0).randint(0, 256, (2, HEIGHT, WIDTH, 3))
  natural = [
    load_sample_image(name)[top : top + HEIGHT, left : left + WIDTH]
    for name, top, left in CROPS
  ]
  return np.stack([*random, *natural]).astype(np.uint8)


def pytorch_fid_inception():
  """Imports pytorch_fid.inception even if torchvision's operators fail."""
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    # torchvision's compiled operators need another version of torch. Import
    # only its Python code, because Inception needs no compiled operator.
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
      del sys.modules[name]
    name = "torchvision._meta_registrations"
    sys.modules[name] = types.ModuleType(name)
  import pytorch_fid.inception

  return pytorch_fid.inception


def answer(state, pixels):
  """Returns features and logits (without bias) of pytorch-fid's network."""
  import torch

  module = pytorch_fid_inception()
  tensors = {name: torch.from_numpy(value) for name, value in state.items()}
  module.load_state_dict_from_url = lambda url, progress: tensors
  model = module.InceptionV3().eval().double()
  # pytorch-fid's ToTensor scales images to [0, 1].
  x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
  with torch.no_grad():
    (features,) = model(x)
  features = features[:, :, 0, 0]
  return features.numpy(), (features @ tensors["fc.weight"].double().T).numpy()


def resized():
  """Returns an image that torch resized; rows are halved, columns doubled."""
  import torch

  pixels = np.random.RandomState(1).randint(0, 256, (1, 600, 150, 3))
  x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
  out = torch.nn.functional.interpolate(
    x, size=(299, 299), mode="bilinear", align_corners=False
  )
  return out.permute(0, 2, 3, 1).numpy()[0, ::40, ::40, 0]


def main():
  features, logits = answer(weights(), images())
  golden = {
    "crops": [zlib.crc32(image.tobytes()) for image in images()[2:]],
    "features": np.round(features[:, ::EVERY], 6).tolist(),
    # These means and root mean squares are over all features.
    "features_mean": features.mean(1).tolist(),
    "features_rms": np.sqrt((features**2).mean(1)).tolist(),
    "logits": np.round(logits[:, ::EVERY], 6).tolist(),
    "logits_rms": np.sqrt((logits**2).mean(1)).tolist(),
    "resized": np.round(resized(), 7).tolist(),
  }
  GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()

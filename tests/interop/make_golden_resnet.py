"""Stores torch's outputs of ResNets with seeded weights in golden_resnet.json.

Run `python tests/interop/make_golden_resnet.py` once where torch is installed.
The test makes the same weights with numpy alone. The modules follow the
published definition of torchvision, without its initialisation.
"""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_resnet.json")
WIDTH = 16  # The channels of the first level; published ResNets have 64.
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# Some sizes are odd, because then the output shows on which side a strided
# layer pads.
CASES = {
  "18_cifar": {"depth": 18, "stem": "cifar", "size": 16, "seed": 1},
  "18_imagenet": {"depth": 18, "stem": "imagenet", "size": 33, "seed": 2},
  "50_imagenet": {"depth": 50, "stem": "imagenet", "size": 32, "seed": 3},
}
NUM_CLASSES = 5


def shapes(depth, stem):
  """Yields (name, shape) for every tensor of the state dict, in order."""

  def norm(name, channels):
    for part in ("weight", "bias", "running_mean", "running_var"):
      yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()

  side = 7 if stem == "imagenet" else 3
  yield "conv1.weight", (WIDTH, 3, side, side)
  yield from norm("bn1", WIDTH)
  inputs = WIDTH
  for level, blocks in enumerate(BLOCKS[depth]):
    width = WIDTH * 2**level
    sides = (1, 3, 1) if depth >= 50 else (3, 3)
    outputs = 4 * width if depth >= 50 else width
    for block in range(blocks):
      name = f"layer{level + 1}.{block}"
      channels = [inputs] + [width] * (len(sides) - 1) + [outputs]
      for i, side in enumerate(sides):
        shape = (channels[i + 1], channels[i], side, side)
        yield f"{name}.conv{i + 1}.weight", shape
        yield from norm(f"{name}.bn{i + 1}", channels[i + 1])
      if inputs != outputs:
        yield f"{name}.downsample.0.weight", (outputs, inputs, 1, 1)
        yield from norm(f"{name}.downsample.1", outputs)
      inputs = outputs
  yield "fc.weight", (NUM_CLASSES, inputs)
  yield "fc.bias", (NUM_CLASSES,)


def weights(depth, stem, seed):
  """Returns a numpy state dict that keeps activations near one."""
  # RandomState draws the same numbers in every version of numpy.
  random = np.random.RandomState(seed)

  def draw(name, shape):
    if name.endswith("num_batches_tracked"):
      return np.array(7, np.int64)
    value = random.random_sample(shape).astype(np.float32)
    if name.endswith("running_var"):
      return value + 0.5
    if len(shape) == 1:
      # Draw scales around one, biases and means around zero.
      is_scale = name.endswith("weight")
      return value + 0.5 if is_scale else 0.4 * (value - 0.5)
    fan_in = int(np.prod(shape[1:]))
    return (value - 0.5) * np.float32(np.sqrt(12 / fan_in))

  return {name: draw(name, shape) for name, shape in shapes(depth, stem)}


def images(size, seed):
  """Returns two random images, channels last."""
  random = np.random.RandomState(100 + seed)
  return (4 * random.random_sample((2, size, size, 3)) - 2).astype(np.float32)


def answer(depth, stem, size, seed):
  """Returns the logits and features of torch's network."""
  import torch
  from torch import nn

  def conv(inputs, outputs, side, stride=1):
    return nn.Conv2d(
      inputs, outputs, side, stride, padding=side // 2, bias=False
    )

  class Block(nn.Module):
    def __init__(self, inputs, width, stride):
      super().__init__()
      if depth >= 50:
        outputs = 4 * width
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
      else:
        outputs = width
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
      self.downsample = nn.Identity()
      if stride != 1 or inputs != outputs:
        self.downsample = nn.Sequential(
          conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
      h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
      if depth >= 50:
        h = self.bn3(self.conv3(torch.relu(h)))
      return torch.relu(h + self.downsample(x))

  class ResNet(nn.Module):
    def __init__(self):
      super().__init__()
      large = stem == "imagenet"
      self.conv1 = conv(3, WIDTH, 7 if large else 3, 2 if large else 1)
      self.bn1 = nn.BatchNorm2d(WIDTH)
      self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
      inputs = WIDTH
      for level, blocks in enumerate(BLOCKS[depth]):
        width, layer = WIDTH * 2**level, []
        for block in range(blocks):
          stride = 2 if level > 0 and block == 0 else 1
          layer.append(Block(inputs, width, stride))
          inputs = 4 * width if depth >= 50 else width
        setattr(self, f"layer{level + 1}", nn.Sequential(*layer))
      self.fc = nn.Linear(inputs, NUM_CLASSES)

    def forward(self, x):
      x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
      for level in range(4):
        x = getattr(self, f"layer{level + 1}")(x)
      features = x.mean((2, 3))
      return self.fc(features), features

  state = weights(depth, stem, seed)
  model = ResNet().eval().double()
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  x = torch.from_numpy(images(size, seed)).permute(0, 3, 1, 2).double()
  with torch.no_grad():
    logits, features = model(x)
  return {
    "logits": np.round(logits.numpy(), 7).tolist(),
    # Store the first features, and a sum that depends on all of them.
    "features": np.round(features.numpy()[:, :4], 7).tolist(),
    "features_sum": np.round(features.numpy().sum(1), 5).tolist(),
  }


def main():
  golden = {name: answer(**case) for name, case in CASES.items()}
  GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main()

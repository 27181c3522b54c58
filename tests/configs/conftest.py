import functools

import numpy as np
import pytest

from diffdistill.run import from_config, speed
from tests.configs.given import MODULES

# The size and the channels of data sources that do not resize.
NATIVE = {"digits": (8, 1), "idx": (28, 1)}
NUM_CLASSES = {"imagenet2012": 1000}


@pytest.fixture(scope="session")
def with_random_data(tmp_path_factory):
  """Replaces the data of a config by ten random images of a given size."""

  def replace(config, size):
    source = config.data.source
    channels = NATIVE.get(source.kind, (None, source.get("channels", 3)))[1]
    channels = 3 if channels == "auto" else channels
    path = tmp_path_factory.mktemp("data") / "random.npz"
    last = NUM_CLASSES.get(source.get("name"), 10) - 1
    np.savez(
      path,
      image=np.random.default_rng(0).integers(
        0, 256, (10, size, size, channels), dtype=np.uint8
      ),
      label=np.linspace(0, last, 10).astype(int),
    )
    with config.unlocked():
      config.data.source = {"kind": "npz", "path": str(path), "split": "train"}

  return replace


@pytest.fixture(scope="session")
def built_as_it_is(with_random_data):
  """Builds the experiment of a recipe of a config file, only once.

  Some fields depend on the device's speed, which is fixed here, not measured.
  """

  @functools.cache
  def build(name, recipe):
    config = MODULES[name].get_config(recipe)
    with_random_data(config, native_size(config))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(speed, "measured_speed", lambda: 1e10)
      return from_config.build(config)

  return build


def native_size(config):
  """The side of the images that a config trains on."""
  size = config.data.source.get("image_size")
  if size == "auto":
    return 32
  return size or NATIVE[config.data.source.kind][0]

"""Runs a small recipe of CIFAR-10 while only a few packages can be imported.

doors_test.py runs this file with a folder to work in. launch/one_gpu.sh has the
list of packages.
"""

import importlib.machinery
import pathlib
import sys

# These packages come with jax, flax, optax, orbax-checkpoint and pillow.
HELD = """
PIL absl aiofiles etils flax fsspec google humanize importlib_resources jax
jaxlib markdown_it mdurl ml_dtypes msgpack numpy opt_einsum optax orbax
prometheus_client psutil pygments rich simplejson tensorstore treescope
typing_extensions uvloop yaml zipp
"""
BROUGHT = """
array_record cloudpickle grain jaxtyping jinja2 markupsafe ml_collections
portpicker
"""
PACKAGES = {*HELD.split(), *BROUGHT.split()}
MAY_BE_IMPORTED = {*sys.stdlib_module_names, *PACKAGES, "diffdistill"}


class FewPackages(importlib.machinery.PathFinder):
  """A finder that finds only these packages, as if no other were installed."""

  @classmethod
  def find_spec(cls, fullname, path=None, target=None):
    # Python's own list of its modules lacks some, such as _sysconfigdata_...
    if fullname[0] == "_" or fullname.partition(".")[0] in MAY_BE_IMPORTED:
      return super().find_spec(fullname, path, target)
    return None


def main(folder):
  where = sys.meta_path.index(importlib.machinery.PathFinder)
  sys.meta_path[where] = FewPackages

  import jax
  import numpy as np
  from etils import epath
  from ml_collections import ConfigDict

  from diffdistill.cli import main as command_line
  from diffdistill.configs import cifar10
  from diffdistill.tools import evaluate, report, sample, train

  assert command_line.main

  # Do not optimise compiled programs, as in conftest.py: they are small and
  # used once.
  jax.config.update("jax_compilation_cache_dir", ".cache/jax")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

  random = np.random.default_rng(0)
  for split in ("train", "test"):
    image = random.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / f"{split}.npz", image=image, label=np.arange(40) % 10)

  config = cifar10.get_config("progressive")
  path = str(folder / "{split}.npz")
  source = {"kind": "npz", "path": path, "split": "train"}
  config.data.source = ConfigDict(source)
  config.model.network = ConfigDict({"kind": "mlp", "width": 8, "depth": 1})
  config.classifier.update(channels=4, multipliers=(1,), num_blocks=1)
  for stage in config.stages.values():
    stage.update(num_updates=2, batch_size=8)
    stage.optimizer.warmup = 0
  config.stages.halve.update(start_steps=2, long_rounds=0)
  config.evaluation.update(
    num_images=20, batch_size=20, gap_images=10, num_steps=(1, 2)
  )

  workdir = epath.Path(folder) / "run"
  train.train(config, workdir)
  wish = (None, 4, None, 0, None, None, None, False, False)
  sample.sample(workdir, *wish, workdir / "samples.npz")
  evaluate.evaluate(workdir, None, None)
  report.report([workdir], workdir / "report.html")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))

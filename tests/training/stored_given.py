"""Saves, restores and damages files, for tests of stored weights."""

import shutil

import jax
import numpy as np

from diffdistill.training.running import Checkpoints


def save(round_dir, states, keep=2):
  checkpoints = Checkpoints(round_dir, keep)
  for step, state in states.items():
    checkpoints.save(state, step)
  checkpoints.close()


def restore(round_dir, abstract):
  checkpoints = Checkpoints(round_dir)
  try:
    return checkpoints.restore(abstract)
  finally:
    checkpoints.close()


def names(folder):
  return {path.name for path in folder.iterdir()}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def files(folder):
  return sorted(
    (path for path in folder.glob("**/*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )


def cut_in_half(folder):
  largest = files(folder)[-1]
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_byte(folder):
  largest = files(folder)[-1]
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 255
  largest.write_bytes(bytes(data))


def empty_the_largest(folder):
  files(folder)[-1].write_bytes(b"")


def empty_everything(folder):
  for path in files(folder):
    path.write_bytes(b"")


def remove_metadata(folder):
  for path in files(folder):
    if "METADATA" in path.name.upper():
      path.unlink()


def remove_the_arrays(folder):
  for path in folder.iterdir():
    if path.is_dir():
      shutil.rmtree(path)


DAMAGES = (
  cut_in_half,
  flip_a_byte,
  empty_the_largest,
  empty_everything,
  remove_metadata,
  remove_the_arrays,
)


def flip_a_bit_of_an_array(tree, name):
  """Copies the tree, and flips one bit in the array with this name."""

  def flip(path, leaf):
    if jax.tree_util.keystr(path, simple=True, separator="/") != name:
      return leaf
    bits = np.array(leaf).view(np.uint32)
    bits.reshape(-1)[3] ^= 1 << 30
    return jax.device_put(bits.view(leaf.dtype), leaf.sharding)

  return jax.tree_util.tree_map_with_path(flip, tree)

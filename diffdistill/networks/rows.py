"""Runs a row of equal blocks by a scan, so that only one block is compiled."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from diffdistill.arrays import Params
from diffdistill.networks.remat import checkpointed, rematerialised


def scanned(
  block: type[nn.Module],
  length: int,
  *,
  in_axes: object,
  remat: bool | str,
  reverse: bool = False,
) -> type[nn.Module]:
  """Makes the class of a row of blocks, whose parameters are stacked on axis 0.

  Args:
    block: called as block(h, *inputs) -> (h, output); the outputs of all blocks
      are stacked. A block must call `keep_rows` first.
    length: the number of blocks, 1 or more.
    in_axes: one entry for each input: 0 if each block has its own entry,
      nn.broadcast if all blocks share the input.
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
    reverse: whether to run from the last block to the first.
  """
  # prevent_cse stops the compiler from reusing results of the forward pass. A
  # scan needs no such barrier, because the compiler cannot reuse them there.
  block = rematerialised(block, remat, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=in_axes,
    length=length,
    reverse=reverse,
  )


def in_pieces(
  block: nn.Module,
  weights: Params,
  h: Float[Array, "b ..."],
  shared: Array,
  asked: Sequence[int],
  *,
  remat: bool | str,
) -> tuple[Float[Array, "b ..."], dict[int, Float[Array, "b ..."]]]:
  """Runs a row without dropout; returns the outputs of row and asked blocks.

  There is one scan up to each block of `asked`, since the compiler cannot
  shorten a scan if only an early block's output is used.

  Args:
    block: called as block(h, shared) -> (h, None); it is not bound to weights.
    weights: the weights of all blocks, stacked on axis 0.
    h: the input of the first block.
    shared: an input of every block.
    asked: the indices of the wanted blocks, in rising order.
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
  """
  length = jax.tree.leaves(weights)[0].shape[0]

  def step(h, own):
    return block.apply({"params": own}, h, shared)

  step = checkpointed(step, remat)
  found, start = {}, 0
  for end in sorted({*(index + 1 for index in asked), length}):
    piece = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b], weights)
    h, _ = jax.lax.scan(step, h, piece)
    found[end - 1], start = h, end
  return h, {index: found[index] for index in asked}


def keep_rows(h: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """Keeps each example of h on the device that holds it in the batch.

  A scanned block calls this on its input. Otherwise the partitioner splits the
  input by channels, as the stacked weights are split, and sends all examples to
  other devices in each block. Without a mesh, the result is h itself.
  """
  place = jax.typeof(h).sharding
  mesh = place.mesh
  if mesh.empty or h.shape[0] % mesh.size:
    return h
  # The examples of a batch are split over all axes of a device mesh.
  rows = place.update(spec=jax.P(mesh.axis_names))
  return jax.lax.with_sharding_constraint(h, rows)

"""Rows of equal blocks, each row compiled once: one block, scanned."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from diffdistill.arrays import Params


def scanned(
  block: type[nn.Module],
  length: int,
  *,
  in_axes: object,
  remat: bool,
  reverse: bool = False,
) -> type[nn.Module]:
  """A row of blocks: their parameters, each its own, are stacked on axis 0.

  Args:
    block: called as block(h, *inputs) -> (h, what is stacked of each block); it
      begins with `keep_rows`.
    length: of the row, 1 or more.
    in_axes: of the inputs: 0 for one that has an entry for each block,
      nn.broadcast for one that all share.
    remat: recompute each block in the backward pass, for memory.
    reverse: from the last entry and the last parameters to the first.
  """
  if remat:
    # Within a scan there is nothing that the compiler could reuse instead.
    block = nn.remat(block, prevent_cse=False)
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
  remat: bool,
) -> tuple[Float[Array, "b ..."], dict[int, Float[Array, "b ..."]]]:
  """What a row of blocks without dropout gives, and some blocks of it.

  The row ends a scan after each block that is asked for. A single scan could
  not be cut short where only an early block is used.

  Args:
    block: called as block(h, shared) -> (h, None); not bound to weights.
    weights: stacked on axis 0, as `scanned` makes them.
    h, shared: inputs of the first block, and of every block.
    asked: indices of blocks, rising.
    remat: recompute each block in the backward pass, for memory.
  """
  length = jax.tree.leaves(weights)[0].shape[0]

  def step(h, own):
    return block.apply({"params": own}, h, shared)

  if remat:
    step = jax.checkpoint(step, prevent_cse=False)
  found, start = {}, 0
  for end in sorted({*(index + 1 for index in asked), length}):
    piece = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b], weights)
    h, _ = jax.lax.scan(step, h, piece)
    found[end - 1], start = h, end
  return h, {index: found[index] for index in asked}


def keep_rows(h: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """h, each example on the device that holds it in the batch.

  For what a scanned block takes from the one before: left to itself, the
  partitioner splits it as it finds the stacked weights split, by channels, and
  sends all examples about in each block. Without a mesh, h itself.
  """
  place = jax.typeof(h).sharding
  mesh = place.mesh
  if mesh.empty or h.shape[0] % mesh.size:
    return h
  # A batch is split over all axes of a mesh.
  rows = place.update(spec=jax.P(mesh.axis_names))
  return jax.lax.with_sharding_constraint(h, rows)

"""Makes training batches of stored batches, on the device.

Stored batches travel to the device, because bytes are a quarter of the size of
float32.
"""

import jax.numpy as jnp

from diffdistill.arrays import Batch, Condition


def as_trained(batch: Batch) -> Batch:
  """Makes the batch that an objective gets from a batch that a pipeline stores.

  Args:
    batch: the stored batch. It has "image", `b h w c`, uint8 or float32, in [0,
      255]. It may have "noise" of the same shape, float16; "flip", bool of
      shape `b`, which is true for images to mirror left to right; "label",
      int32 of shape `b`.

  Returns:
    A batch with "image", (x - 127.5) / 127.5 in float32, mirrored where "flip"
    is true; "noise" in float32, if there is any; and "condition", which holds
    the labels.
  """
  image = batch["image"]
  if "flip" in batch:
    flip = batch["flip"][:, None, None, None]
    image = jnp.where(flip, image[:, :, ::-1], image)
  trained = {
    # Subtract before dividing. Then the result is rounded only once, and black
    # is exactly the negative of white.
    "image": (image.astype(jnp.float32) - 127.5) / 127.5,
    "condition": Condition(label=batch.get("label")),
  }
  if "noise" in batch:
    trained["noise"] = batch["noise"].astype(jnp.float32)
  return trained

"""Stored batches as they are trained on, made on the device.

What travels to the device is what is stored: bytes are a quarter of the
float32 that they become.
"""

import jax.numpy as jnp

from diffdistill.arrays import Batch, Condition


def as_trained(batch: Batch) -> Batch:
  """A batch of a pipeline as objectives know it: images in [-1, 1].

  Args:
    batch: "image": `b h w c`, uint8 or float32, in [0, 255]; where there are,
      "noise": the same shape, float16; "flip": bool of shape `b`, which images
      to mirror left to right; "label": int32 of shape `b`.

  Returns:
    The batch with "image" (x - 127.5) / 127.5, in float32, mirrored where it
    was to be; "noise" in float32; and "condition" with the labels.
  """
  image = batch["image"]
  if "flip" in batch:
    flip = batch["flip"][:, None, None, None]
    image = jnp.where(flip, image[:, :, ::-1], image)
  trained = {
    # This way round a byte is one rounding from the truth, white is -black.
    "image": (image.astype(jnp.float32) - 127.5) / 127.5,
    "condition": Condition(label=batch.get("label")),
  }
  if "noise" in batch:
    trained["noise"] = batch["noise"].astype(jnp.float32)
  return trained

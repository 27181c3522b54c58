"""Measures the speed of a device on convolutions and their gradient."""

import time
from typing import Any

import jax
import jax.numpy as jnp

LAYERS = 4
SECONDS = 0.5
# Operations per second if nothing is measured, as in a plan for other devices.
ASSUMED = {"cpu": 5e10, "accelerator": 5e13}


def kind_of(device: jax.Device) -> str:
  """Whether a device is a "cpu" or an "accelerator"."""
  return "cpu" if device.platform == "cpu" else "accelerator"


def measured_speed() -> float:
  """Floating-point operations per second of one device of this process.

  The measurement takes a second or two, including compilation.
  """
  gradient, args, operations = timed_work(kind_of(jax.local_devices()[0]))
  jax.block_until_ready(gradient(*args))
  start, count = time.monotonic(), 0
  while time.monotonic() - start < SECONDS:
    jax.block_until_ready(gradient(*args))
    count += 1
  return count * operations / (time.monotonic() - start)


def timed_work(kind: str) -> tuple[Any, tuple[Any, ...], int]:
  """The jitted function that is timed, its arguments, and its operations.

  It computes the gradient of a few convolutions, in shapes that are typical of
  the networks that such a device trains.
  """
  batch, side, channels, dtype = (
    (64, 16, 64, jnp.float32) if kind == "cpu" else (256, 32, 128, jnp.bfloat16)
  )
  kernels = [jnp.full((3, 3, channels, channels), 0.01, dtype)] * LAYERS
  images = jnp.ones((batch, side, side, channels), dtype)

  def loss(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
    for kernel in kernels:
      x = jax.nn.swish(
        jax.lax.conv_general_dilated(
          x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
      )
    return jnp.mean(jnp.square(x.astype(jnp.float32)))

  # The gradient needs the pass forward and twice as much work backward.
  operations = 3 * LAYERS * 2 * 9 * channels**2 * side**2 * batch
  return jax.jit(jax.grad(loss, argnums=(0, 1))), (kernels, images), operations


def memory_of(device: jax.Device) -> float:
  """The bytes of a device's memory; infinite if the device does not tell."""
  stats = device.memory_stats() or {}
  return float(stats.get("bytes_limit", float("inf")))

"""Times parts of training and sampling beside the same parts in PyTorch.

  python -m tests.against_torch [--turns=7] [--batch=64] [--only=update,forward]

Needs torch and diffusers (`make check-diffusers` installs them). Two networks
of diffusers with random weights are imported here, so both sides have the same
weights, and their outputs are compared first. Then they take turns in one
process, with 2 threads each:

  update    a progressive update of a U-Net of 4.4M parameters: two passes of
            the teacher, a gradient, clipping, Adam and a moving average
  gradient  the gradient of the loss of DiT-S/4 in its weights
  forward   one pass of the U-Net
  sampling  8 steps of DDIM with the U-Net

A line has the median CPU-seconds of all threads, the median seconds, and the
medians of the ratios of neighbouring turns, ours divided by PyTorch's. Flags of
XLA are given as always, by the variable XLA_FLAGS.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
  DDIMPipeline,
  DDIMScheduler,
  DiTTransformer2DModel,
  UNet2DModel,
)
from etils import epath

from diffdistill.arrays import Condition
from diffdistill.interop import diffusers
from diffdistill.interop.model import network_of
from diffdistill.objectives.objective import Now
from diffdistill.objectives.progressive import Progressive
from diffdistill.run.model_section import denoiser_of, sampler_of
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  Layout,
  make_mesh,
  replicated,
  shard_batch,
)
from diffdistill.training.state import create_state, with_shardings
from diffdistill.training.step import make_update

THREADS = 2
SIDE, STEPS, CLASSES = 32, 8, 10
RATE, DECAY, CLIP = 1e-4, 0.999, 1.0
# Both sides compute in float32, but sum in another order.
TOLERANCE = 2e-4


def unet():
  """A U-Net of 4.4M parameters for images of 32x32."""
  return UNet2DModel(
    sample_size=SIDE,
    block_out_channels=(64, 128, 128),
    layers_per_block=1,
    attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  )


def dit():
  """DiT-S/4 of Peebles & Xie 2023, for images of 32x32."""
  return DiTTransformer2DModel(
    num_attention_heads=6,
    attention_head_dim=64,
    in_channels=3,
    num_layers=12,
    sample_size=SIDE,
    patch_size=4,
    num_embeds_ada_norm=CLASSES,
  )


def imported(theirs, folder):
  """Saves a network of diffusers, and reads it as a user would."""
  theirs.save_pretrained(folder / "unet")
  DDIMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
    folder / "scheduler"
  )
  return diffusers.read(epath.Path(folder))


def randomized(network, seed):
  """Gives each weight a random value, also those that begin at zero."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in network.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.add_(0.02 * noise)
  return network.train()


class Unet:
  """The U-Net on both sides, with the same images and times."""

  def __init__(self, folder, batch):
    self.theirs = randomized(unet(), 0)
    self.model = imported(self.theirs, folder)
    self.denoiser = denoiser_of(self.model)
    self.params = jax.tree.map(jnp.asarray, self.model.params)
    random = np.random.default_rng(0)
    self.images = random.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    self.x = random.normal(size=self.images.shape).astype(np.float32)
    self.index = random.integers(0, 1000, batch)

  @property
  def x_torch(self):
    return torch.from_numpy(self.x).permute(0, 3, 1, 2).contiguous()

  def forward(self):
    """Both forward passes, as functions; they give eps of one shape."""
    denoiser = self.denoiser
    run = jax.jit(lambda params, x, t: denoiser(params, x, t).eps)
    t = jnp.asarray((self.index + 1) / 1000, jnp.float32)
    x, there, index = jnp.asarray(self.x), self.x_torch, self.index

    def theirs():
      with torch.no_grad():
        out = self.theirs(there, torch.from_numpy(index)).sample
      return out.permute(0, 2, 3, 1).numpy()

    return lambda: np.asarray(run(self.params, x, t)), theirs

  def sampling(self):
    """Eight steps of DDIM on both sides, from one noise."""
    sampler = sampler_of(self.model, self.denoiser)

    @jax.jit
    def run(params, x):
      key, bound = jax.random.key(0), self.denoiser.bind(params)
      return sampler(bound, x, key, jnp.int32(STEPS))

    scheduler = DDIMScheduler(
      beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    )
    pipeline = DDIMPipeline(self.theirs, scheduler)
    x, there = jnp.asarray(self.x), self.x_torch

    def theirs():
      scheduler.set_timesteps(STEPS)
      images = there
      with torch.no_grad():
        for index in scheduler.timesteps:
          eps = pipeline.unet(images, index).sample
          images = scheduler.step(
            eps, index, images, use_clipped_model_output=True
          ).prev_sample
      return images.permute(0, 2, 3, 1).numpy()

    return lambda: np.asarray(run(self.params, x)), theirs

  def update(self):
    """A progressive update on both sides. Each side draws its own noise."""
    return self._our_update(), self._their_update()

  def _our_update(self):
    mesh = make_mesh(devices=jax.devices()[:1])
    objective = Progressive(
      denoiser=self.denoiser, sampler=sampler_of(self.model, self.denoiser)
    )
    optimizers = {
      "student": Optimizer(learning_rate=RATE, ema_decay=DECAY, clip=CLIP)
    }
    frozen = {"teacher": self.params}

    def init(key, frozen):
      return create_state(objective, optimizers, key, frozen)

    key = jax.random.key(0)
    abstract = with_shardings(
      jax.eval_shape(init, key, frozen), Layout(mesh=mesh)
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    (turn,) = objective.cycle
    update = make_update(objective, turn, optimizers, shardings, mesh)
    state = [jax.jit(init, out_shardings=shardings)(key, frozen)]
    now = Now(
      num_steps=np.int32(STEPS),
      guided=np.float32(0),
      step=np.int32(0),
      progress=np.float32(0),
    )
    told = jax.device_put(
      (key, now, {"student": np.float32(RATE)}), replicated(mesh)
    )

    def ours():
      batch = shard_batch({"image": self.images}, mesh)
      state[0], metrics = update(state[0], frozen, batch, *told)
      return float(metrics["student/loss"][0])

    return ours

  def _their_update(self):
    """Salimans & Ho 2022, Algorithm 2, for eps and a cosine schedule."""
    student = self.theirs
    teacher, average = (
      randomized(unet(), 0).requires_grad_(False) for _ in range(2)
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    alphas = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    images = torch.from_numpy(self.images).permute(0, 3, 1, 2)

    def coefficients(t):
      # The index before the first one stands for t = 0, without noise.
      index = (t * 1000).round().long() - 1
      square = torch.where(index < 0, 1.0, alphas[index.clamp(min=0)])
      square = square[:, None, None, None]
      return square.sqrt(), (1 - square).sqrt(), index.clamp(min=0)

    def predict(network, x, t):
      alpha, sigma, index = coefficients(t)
      eps = network(x, index).sample
      return (x - sigma * eps) / alpha, eps

    def step(x0, eps, s):
      alpha, sigma, _ = coefficients(s)
      return alpha * x0 + sigma * eps

    def theirs():
      x0 = (images.float() - 127.5) / 127.5
      i = torch.randint(1, STEPS + 1, (len(x0),))
      t, mid, s = i / STEPS, (i - 0.5) / STEPS, (i - 1) / STEPS
      alpha, sigma, _ = coefficients(t)
      x_t = alpha * x0 + sigma * torch.randn(x0.shape)
      with torch.no_grad():
        first, eps = predict(teacher, x_t, t)
        second, eps = predict(teacher, step(first, eps, mid), mid)
        x_s = step(second, eps, s)
        alpha_s, sigma_s, _ = coefficients(s)
        share = sigma_s / sigma
        target = (x_s - share * x_t) / (alpha_s - share * alpha)
      found, _ = predict(student, x_t, t)
      weight = (alpha / sigma).square().clamp(min=1)
      loss = (weight * (target - found).square()).mean()
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
      optimizer.step()
      with torch.no_grad():
        torch._foreach_lerp_(
          list(average.parameters()), list(student.parameters()), 1 - DECAY
        )
      return float(loss)

    return theirs


def gradient(folder, batch):
  """The gradient of a squared output of DiT-S/4, on both sides."""
  theirs = randomized(dit(), 1)
  # In the published weights the embeddings of all blocks are equal.
  first = theirs.transformer_blocks[0].norm1.emb.state_dict()
  for block in theirs.transformer_blocks:
    block.norm1.emb.load_state_dict(first)
  theirs.eval()
  model = imported(theirs, folder)
  network, params = network_of(model), jax.tree.map(jnp.asarray, model.params)
  random = np.random.default_rng(1)
  x = random.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
  index, label = random.integers(0, 1000, batch), random.integers(0, 10, batch)

  def loss(params, x, t, label):
    out = network.apply(params, x, t, Condition(label=label))
    return jnp.mean(jnp.square(out))

  run = jax.jit(jax.value_and_grad(loss))
  told = (
    jnp.asarray(x),
    jnp.asarray(index / 1000, jnp.float32),
    jnp.asarray(label, jnp.int32),
  )
  there = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
  index, label = torch.from_numpy(index), torch.from_numpy(label)

  def of_torch():
    theirs.zero_grad(set_to_none=True)
    out = theirs(there, timestep=index, class_labels=label).sample
    value = out[:, :3].square().mean()
    value.backward()
    return np.float32(value.item())

  def of_jax():
    value, _ = jax.block_until_ready(run(params, *told))
    return np.float32(value)

  return of_jax, of_torch


def timed(act):
  wall, cpu = time.monotonic(), time.process_time()
  act()
  return time.process_time() - cpu, time.monotonic() - wall


def compare(name, ours, theirs, turns):
  """Lets both sides take turns, and prints their times and ratios."""
  rows = []
  for turn in range(turns):
    # The side that comes first changes, because a machine may slow down.
    order = (ours, theirs) if turn % 2 else (theirs, ours)
    took = {act: timed(act) for act in order}
    rows.append((*took[ours], *took[theirs]))
  cpu, wall, their_cpu, their_wall = (
    statistics.median(column) for column in zip(*rows, strict=True)
  )
  cpu_ratio, wall_ratio = (
    statistics.median(row[i] / row[i + 2] for row in rows) for i in (0, 1)
  )
  print(
    f"{name:<9} ours {cpu:.3f} CPU-s {wall:.3f} s, torch {their_cpu:.3f} CPU-s"
    f" {their_wall:.3f} s, ratio {cpu_ratio:.2f} CPU, {wall_ratio:.2f} wall",
    flush=True,
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--only", default="update,gradient,forward,sampling")
  given = parser.parse_args()
  # XLA starts as many threads as there are cores that it may use.
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  only = given.only.split(",")
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    network = Unet(folder / "unet", given.batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    print(
      f"jax {jax.__version__}, torch {torch.__version__}, a U-Net of"
      f" {count:,} parameters, batches of {given.batch}, {THREADS} threads",
      flush=True,
    )
    # The update comes last, because it changes the weights of one side.
    parts = {
      "forward": network.forward,
      "sampling": network.sampling,
      "gradient": lambda: gradient(folder / "dit", given.batch),
      "update": network.update,
    }
    for name, make in parts.items():
      if name not in only:
        continue
      ours, theirs = make()
      found, expected = ours(), theirs()
      if name != "update":
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
          found / scale, expected / scale, atol=TOLERANCE
        )
      compare(name, ours, theirs, given.turns)


if __name__ == "__main__":
  main()

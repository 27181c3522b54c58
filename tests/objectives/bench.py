"""Builds each objective with a tiny network, compiled once for all tests."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.neighbours import EvenNeighbours
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.classifier import LinenClassifier, ResNet
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.objective import turn_of
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.flow_map import FlowMap
from diffdistill.sampling.one_step import OneStep
from diffdistill.sampling.renoising import Renoising
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  Layout,
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import (
  create_state,
  with_shardings,
)
from diffdistill.training.step import make_update
from tests.objectives.given import now_of
from tests.objectives.proving import PROVING

# Renoising's usual grid begins at t = 1.
UNIFORM = EvenNeighbours(curve="uniform")
PAPERS: dict[str, dict[str, Any]] = {
  "denoising": {},
  "fine_tuning": {},
  "classification": {"noise": 0.1, "label_smoothing": 0.1},
  "denoising_student": {"sampler": OneStep},
  "guidance_distillation": {},
  "progressive": {},
  "classifier_features": {},
  "moment_matching": {"sampler": Ancestral},
  "parameter_moment_matching": {"sampler": Ancestral},
  "flow_map": {"sampler": FlowMap},
  "consistency_distillation": {
    "sampler": Renoising,
    "neighbours": UNIFORM,
    "target_decay": 0.5,
  },
  "consistency_training": {"sampler": Renoising, "neighbours": UNIFORM},
  "mean_flow": {"sampler": FlowMap},
  "multistep_consistency": {"dropout": True},
  "reflow": {},
  "scm_distillation": {"sampler": OneStep, "warmup": 0},
  "scm_training": {"sampler": Renoising},
  "score_identity": {"sampler": OneStep},
  # These objectives belong to no paper. They test the interface of objectives;
  # see proving.py.
  **{name: {} for name in PROVING},
}
every_paper = pytest.mark.parametrize("name", PAPERS)
# Other settings of some objectives, which cost other passes.
VARIANTS: dict[str, dict[str, Any]] = {
  "flow_map eulerian": {"sampler": FlowMap, "identity": "eulerian"},
  "flow_map semigroup": {"sampler": FlowMap, "identity": "semigroup"},
  "mean_flow student": {
    "sampler": FlowMap,
    "tangent": "student",
    "own_share": 0.3,
  },
  "progressive told": {"told": (0.0, 4.0)},
}
# The objectives whose network has two times.
TWO_TIMES = ("average_noise", "flow_map", "mean_flow")
# The objectives, or their variants, whose network is told a guidance weight.
TOLD = ("guidance_distillation", "progressive told")

IMAGE = (4, 4, 1)
CLASSES = 3
BATCH = 16  # each of 8 devices has a row of each half of a batch
# With eps = 1 an update of Adam is nearly proportional to the gradient. With
# the usual eps the update is nearly the gradient's sign, which amplifies the
# rounding of small gradients.
OPTIMIZER = Optimizer(learning_rate=0.1, eps=1.0, ema_decay=0.9)


def build(name, width=8, depth=1, channels=8):
  """Builds the objective of this name, as from_config.py builds it."""
  fields = {"sampler": DDIM, **{**PAPERS, **VARIANTS}[name]}
  told = name in TOLD
  name = name.split()[0]
  process = GaussianProcess(schedule=Cosine())
  # The network has one more class than the data, for the null label.
  mlp = MLP(
    width=width,
    depth=depth,
    out_channels=1,
    num_classes=CLASSES + 1,
    two_times=name in TWO_TIMES,
    told_guidance=told,
  )
  resnet = ResNet(
    channels=channels, multipliers=(1,), num_blocks=1, num_classes=CLASSES
  )
  given = {
    "denoiser": Denoiser(
      network=LinenNetwork(
        module=mlp, image_shape=IMAGE, num_classes=CLASSES + 1
      ),
      process=process,
      output="v",
      conditional=True,
      null_label=CLASSES,
    ),
    "sampler": fields.pop("sampler")(process=process),
    "classifier": LinenClassifier(module=resnet, image_shape=IMAGE),
    "guidance": Guidance(weight=0.7),
    "label_dropout": 0.25,
  }
  kind: Any = {**OBJECTIVES, **PROVING}[name]
  wanted = {field.name for field in dataclasses.fields(kind)}
  return kind(**{k: v for k, v in given.items() if k in wanted}, **fields)


@functools.cache
def weights(network):
  """Draws random weights of a network; no layer is left at its zeros."""

  @jax.jit
  def draw(key):
    leaves, structure = jax.tree.flatten(network.init(key))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
      structure,
      [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
      ],
    )

  return draw(jax.random.key(2))


def frozen_of(objective):
  """Draws random weights for each frozen tree of an objective, by name."""
  frozen = {}
  kinds = {**dict.fromkeys(objective.starts, "denoiser"), **objective.needs}
  for name, kind in kinds.items():
    if kind == "classifier":
      frozen[name] = weights(objective.classifier)
    else:
      frozen[name] = weights(objective.denoiser.network)
    if kind == "moments":
      frozen[name] = jax.tree.map(lambda p: 0.1 + p**2, frozen[name])
  return frozen


def needed(objective, frozen):
  """Selects the frozen trees that every update needs, by name."""
  return {name: frozen[name] for name in objective.needs}


def rows(objective, step, size=BATCH):
  """Makes the random batch of an update, with images as bytes."""
  random = np.random.default_rng(step)
  batch = {
    "image": random.integers(0, 256, (size, *IMAGE), np.uint8),
    "label": random.integers(0, CLASSES, size, np.int32),
  }
  if objective.consumes == "pairs":
    batch["noise"] = random.normal(size=(size, *IMAGE)).astype(np.float16)
  return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
  """An objective on a mesh, compiled as the trainer compiles it."""

  objective: Any
  mesh: Any
  frozen: Any
  init: Any
  updates: Any
  abstract: Any

  def start(self):
    return self.init(self._everywhere(jax.random.key(0)), self.frozen)

  def update(self, state, turn, step=0, learning_rate=0.1, **fields):
    """Returns (state, metrics) after one update of the trees of a turn."""
    batch = shard_batch(rows(self.objective, step), self.mesh)
    rates = dict.fromkeys(self.objective.trees, np.float32(learning_rate))
    traced = self._everywhere((jax.random.key(1), now_of(**fields), rates))
    frozen = needed(self.objective, self.frozen)
    return self.updates[turn](state, frozen, batch, *traced)

  def run(self, state, first, last):
    """Returns (state, all metrics) after updates first to last - 1."""
    heard = {}
    for step in range(first, last):
      turn = turn_of(self.objective, step)
      state, metrics = self.update(state, turn, step)
      heard |= {f"{step} {metric}": v for metric, v in metrics.items()}
    return state, heard

  def _everywhere(self, tree):
    return jax.device_put(tree, replicated(self.mesh))


@functools.cache
def bench(name, mesh, accumulate=1, **splits):
  """Compiles the objective on a mesh; a cache keeps it for all tests.

  `splits` says how trees of each kind are split, see `Layout`.
  """
  objective = build(name)
  optimizers = dict.fromkeys(objective.trees, OPTIMIZER)
  frozen = frozen_of(objective)

  def init(key, frozen):
    return create_state(objective, optimizers, key, frozen)

  with pytest.MonkeyPatch.context() as patch:
    # This setting splits even small networks over fsdp.
    patch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", 1)
    shapes = jax.eval_shape(init, jax.random.key(0), frozen)
    layout = Layout(mesh=mesh, **splits)
    abstract = with_shardings(shapes, layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return Bench(
      objective=objective,
      mesh=mesh,
      frozen=jax.device_put(frozen, tree_shardings(frozen, layout)),
      init=jax.jit(init, out_shardings=shardings),
      updates={
        turn: make_update(
          objective, turn, optimizers, shardings, mesh, accumulate
        )
        for turn in set(objective.cycle)
      },
      abstract=abstract,
    )


def on_host(tree):
  """Copies a tree to the host, where donation of buffers cannot delete it."""
  return jax.tree.map(np.array, tree)


def equal(a, b):
  """Whether two trees of arrays are the same, bit for bit."""
  same = jax.tree.map(np.array_equal, a, b)
  return all(jax.tree.leaves(same))

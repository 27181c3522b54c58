"""Published settings, repeated so that a slip in a recipe is noticed."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.data.pair_set import PairSet
from diffdistill.diffusion.schedule import LinearBeta, Shifted
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.configs.given import MODULES, has, rounds_of, stages_of


@pytest.mark.parametrize(
  ("name", "recipe", "teacher", "student", "batch_size", "start", "updates"),
  [
    # The last number is the updates of all rounds (Salimans & Ho 2022, 5.2).
    ("cifar10", "progressive", 2e-4, 5e-5, 128, 8192, 750_000),
    ("imagenet64", "progressive", 3e-4, 1e-4, 2048, 1024, 600_000),
    ("lsun", "bedroom", 3e-4, 1e-4, 2048, 1024, 600_000),
    ("lsun", "church", 3e-4, 1e-4, 2048, 1024, 600_000),
  ],
)
def test_progressive_is_as_published(
  name, recipe, teacher, student, batch_size, start, updates, built_as_it_is
):
  built = built_as_it_is(name, recipe)
  stages = stages_of(built)
  has(stages["teacher"], batch_size=batch_size)
  has(
    stages["teacher"].optimizer,
    learning_rate=teacher,
    warmup=1000,
    decay="constant",
    weight_decay=1e-3 if name == "cifar10" else 0.0,
    clip=1.0,
    ema_decay=0.9999,
  )
  has(stages["teacher"].objective, weighting="truncated_snr", discrete_steps=0)
  has(stages["halve"], batch_size=batch_size)
  has(stages["halve"].objective, weighting="truncated_snr")
  has(
    stages["halve"].optimizer,
    learning_rate=student,
    warmup=0,
    decay="linear",
    b1=0.9,
    b2=0.999,
    weight_decay=0.0,
    clip=1.0,
    ema_decay=0.0,
  )
  rounds = rounds_of(built, "halve")
  assert rounds[0].name == f"halve/{start // 2}"
  assert rounds[0].frozen == {"teacher": "teacher"}
  assert rounds[-1].name == "halve/001"
  assert sum(round_.num_updates for round_ in rounds) == updates
  assert [round_.num_updates for round_ in rounds[-3:]] == [
    50_000,
    100_000,
    100_000,
  ]


def test_classifier_features_are_as_published(built_as_it_is):
  built = built_as_it_is("cifar10", "classifier_features")
  stages = stages_of(built)
  has(stages["teacher"], num_updates=800_000, batch_size=128)
  has(
    stages["teacher"].objective, weighting="truncated_snr", discrete_steps=1024
  )
  has(
    stages["teacher"].optimizer,
    learning_rate=2e-4,
    warmup=5000,
    weight_decay=0.0,
    ema_decay=0.9999,
  )
  for name in ("halve", "features"):
    has(stages[name], batch_size=128)
    has(
      stages[name].optimizer,
      learning_rate=5e-5,
      warmup=0,
      decay="cosine",
      weight_decay=0.0,
      clip=1.0,
      ema_decay=0.0,
    )
  has(
    stages["features"].objective,
    temperature=0.95,
    dataset_weight=0.003,
    entropy_share=0.75,
  )
  halved = rounds_of(built, "halve")
  assert [r.num_steps for r in halved] == [512, 256, 128, 64, 32, 16, 8]
  assert {r.num_updates for r in halved} == {10_000}
  assert [
    (r.name, r.num_updates, r.frozen) for r in rounds_of(built, "features")
  ] == [
    (name, updates, {"teacher": teacher, "classifier": "expert"})
    for name, updates, teacher in (
      ("features/004", 10_000, "halve/008"),
      ("features/002", 20_000, "features/004"),
      ("features/001", 20_000, "features/002"),
    )
  ]
  # The classifier that judges is not the one that taught a student.
  assert next(iter(built.rounds)) == "classifier"


QUADRATIC = {"grid": "quadratic_indices", "first_time": 0.801, "clip": False}
UNIFORM = {"grid": "uniform_indices", "first_time": 0.981, "clip": False}
SMALL = {"b1": 0.9, "b2": 0.98, "ema_decay": 0.995, "warmup": 5000}
LARGE = {"b1": 0.98, "b2": 0.999, "ema_decay": 0.9995, "warmup": 1000}
LSUN = {
  "sampler": UNIFORM,
  "indices": np.arange(0, 1000, 20),
  "pairs": {"num_steps": 50, "shard_size": 2560, "held_out": 2560},
  "shards": 400,
  "norm": "l2",
  "optimizer": {"learning_rate": 5e-6, **LARGE},
}
DENOISING_STUDENTS = {
  ("cifar10", "denoising_student"): {
    "sampler": QUADRATIC,
    "indices": np.floor(np.linspace(0, 800**0.5, 100) ** 2),
    "pairs": {"num_steps": 100, "shard_size": 102_400, "held_out": 51_200},
    "shards": 10,
    "norm": "l1",
    "optimizer": {"learning_rate": 2e-4, **SMALL},
    "student": {"batch_size": 512, "num_updates": 50_000},
  },
  ("celeba", "denoising_student"): {
    "sampler": QUADRATIC,
    "indices": np.floor(np.linspace(0, 800**0.5, 100) ** 2),
    "pairs": {"num_steps": 100, "shard_size": 25_600, "held_out": 10_240},
    "shards": 40,
    "norm": "l2",
    "optimizer": {"learning_rate": 5e-5, **SMALL},
    "student": {"batch_size": 512, "num_updates": 70_000},
  },
  ("lsun", "bedroom256"): {
    **LSUN,
    "student": {"batch_size": 32, "num_updates": 1_600_000},
  },
  ("lsun", "church256"): {
    **LSUN,
    "student": {"batch_size": 32, "num_updates": 1_280_000},
  },
}


@pytest.mark.parametrize(("name", "recipe"), DENOISING_STUDENTS)
def test_the_denoising_student_is_as_published(name, recipe, built_as_it_is):
  wanted = DENOISING_STUDENTS[name, recipe]
  built = built_as_it_is(name, recipe)
  stages = stages_of(built)
  pairs, student = stages["pairs"], stages["denoising_student"]
  has(pairs, num_pairs=1_024_000, **wanted["pairs"])
  assert wanted["shards"] * pairs.shard_size == pairs.num_pairs
  assert isinstance(pairs.sampler, DDIM)
  has(pairs.sampler, **wanted["sampler"])
  # The released code evaluates the teacher at these of DDPM's 1000 time steps.
  steps = np.arange(pairs.num_steps, 0, -1)
  times = [pairs.sampler.time(int(i), pairs.num_steps) for i in steps]
  indices = 1000 * np.asarray(times) - 1
  np.testing.assert_allclose(indices, wanted["indices"][::-1], atol=1e-3)
  # Students are compared with the same teacher that they learn from.
  assert pairs.sampler == stages["teacher"].objective.sampler
  assert max(built.evaluation.num_steps) == pairs.num_steps
  has(student, **wanted["student"])
  has(student.objective, norm=wanted["norm"])
  has(student.objective.sampler, form="difference")
  has(
    student.optimizer,
    decay="constant",
    eps=1e-8,
    weight_decay=0.0,
    clip=0.0,
    **wanted["optimizer"],
  )
  # Selection takes place at the end of each epoch, or after 80 shards.
  has(student.select, by="held_out_loss")
  shards = min(wanted["shards"], 80)
  assert student.select.every * student.batch_size == shards * pairs.shard_size
  # Batches divide the numbers of pairs, so every batch is whole.
  for count in (pairs.shard_size, pairs.held_out):
    assert count % student.batch_size == count % pairs.batch_size == 0
  has(built.denoiser, output="eps")
  assert built.denoiser.process.schedule == LinearBeta(
    num_steps=1000, beta_min=1e-4, beta_max=0.02
  )
  # At t = 1 the network is told DDPM's last time step, which is 999.
  scaling = built.denoiser.precondition.scaling(
    built.denoiser.process.schedule, jnp.ones(1)
  )
  np.testing.assert_allclose(1000 * scaling.c_noise, 999, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "recipe"),
  [("celeba", "denoising_student"), ("lsun", "bedroom256")],
)
def test_the_disk_space_of_pairs_is_as_stated(name, recipe, built_as_it_is):
  built = built_as_it_is(name, recipe)
  stage = stages_of(built)["pairs"]
  gigabytes = {}
  for store_noise in (True, False):
    pairs = PairSet(
      teacher="",
      sampler="",
      num_steps=1,
      seed=0,
      image_shape=built.source.image_shape,
      num_pairs=stage.num_pairs,
      held_out=stage.held_out,
      shard_size=stage.shard_size,
      store_noise=store_noise,
    )
    count = stage.num_pairs + stage.held_out
    gigabytes[store_noise] = pairs.num_bytes(count) / 1e9
    said = rf"\b{gigabytes[store_noise]:.0f}\b"
    assert re.search(said, MODULES[name].__doc__)
  if name == "lsun":
    # The README of the authors states 600 GB.
    assert gigabytes[True] == pytest.approx(600, rel=0.01)
    has(stage, store_noise=False, max_gigabytes=100.0)


# The sizes of the U-ViTs in Heek et al. 2024, appendix A.1.
UVITS = {
  "imagenet64": {
    "channels": (256, 512, 1024),
    "num_blocks": (3, 3, 16),
    "conv_stages": 1,
    "dropout": (0.0, 0.0, 0.2),
  },
  "imagenet128": {
    "channels": (128, 256, 512, 1024),
    "num_blocks": (3, 3, 3, 16),
    "conv_stages": 2,
    "dropout": (0.0, 0.0, 0.0, 0.1),
  },
}


@pytest.mark.parametrize(
  ("recipe", "stage_name", "num_steps"),
  [
    ("moment_matching", "moments", (8, 4, 2, 1)),
    ("parameter_moment_matching", "parameter_moments", (8, 4)),
  ],
)
@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "imagenet128"])
def test_moment_matching_is_as_published(
  name, recipe, stage_name, num_steps, built_as_it_is
):
  built = built_as_it_is(name, recipe)
  stage = stages_of(built)[stage_name]
  has(stage.optimizer, b1=0.0, b2=0.99, eps=1e-12)
  has(stage, num_steps=num_steps, num_updates=200_000)
  has(stage.select, by="distance", every=5000)
  assert isinstance(stage.objective.sampler, Ancestral)
  has(stage.objective.sampler, noise=0.0, grid="uniform")
  assert [r.name for r in rounds_of(built, stage_name)] == [
    f"{stage_name}/{n:03d}" for n in num_steps
  ]
  # No round is the student of another round.
  for round_ in rounds_of(built, stage_name):
    assert set(round_.frozen.values()) == {"teacher"}
  if name != "cifar10":
    assert stage.batch_size == 2048
    # Some labels are hidden from the teacher, so that it can be guided.
    assert built.denoiser.null_label is not None
    assert built.denoiser.output == "v"
    # The teacher of moments is differentiated in forward mode too.
    has(
      built.denoiser.network.module,
      **UVITS[name],
      attention="xla",
      remat="all",
      dtype="bfloat16",
    )
  schedule = built.denoiser.process.schedule
  assert isinstance(schedule, Shifted) == (name == "imagenet128")
  if name == "imagenet128":
    has(schedule, image_size=128, base_size=32)


@pytest.mark.parametrize(
  ("data", "recipe", "stage", "rate", "batch_size", "updates"),
  [
    ("cifar10", "consistency_distillation", "consistency", 4e-4, 512, 800_000),
    ("cifar10", "easy_consistency", "easy_consistency", 1e-4, 128, 200_000),
    (
      "imagenet64",
      *("consistency_distillation", "consistency", 8e-6, 2048, 600_000),
    ),
  ],
)
def test_consistency_models_are_as_published(
  data, recipe, stage, rate, batch_size, updates, built_as_it_is
):
  small = data == "cifar10"
  built = built_as_it_is(data, recipe)
  has(built.denoiser.precondition, boundary=True, sigma_data=0.5)
  trained = stages_of(built)[stage]
  has(trained, batch_size=batch_size)
  has(
    trained.optimizer,
    kind="radam",
    learning_rate=rate,
    clip=0.0,
    weight_decay=0.0,
    ema_decay=0.9999 if small else 0.999943,
  )
  neighbours = trained.objective.neighbours
  if stage == "consistency":
    has(trained.objective, solver="heun", weighting="constant", dropout=False)
    steps = 17 if small else 39
    has(neighbours, first=steps, last=steps, curve="karras")
    has(trained.objective, target_decay=0.0 if small else 0.95)
  else:
    has(trained.objective, weighting="edm", huber=0.0, dropout=True)
    has(neighbours, q=2.0, stages=8, k=8.0, b=1.0, least=0.0)
    has(neighbours.draw, mean=-1.1, std=2.0)
  (round_,) = rounds_of(built, stage)
  assert round_.num_updates == updates
  assert round_.all_steps == (1, 2)
  # The second of two steps begins at the published noise level.
  t = trained.objective.sampler.time(1, 2)
  sigma = built.denoiser.process.schedule.sigma(t)
  assert float(sigma) == pytest.approx(0.821 if small else 1.383, rel=1e-4)


@pytest.mark.parametrize(
  ("data", "kind", "rate", "batch_size", "updates", "std", "level"),
  [
    ("cifar10", "scm_distillation", 1e-4, 512, 500_000, 1.4, 0.821),
    ("cifar10", "scm_training", 1e-4, 512, 350_000, 1.4, 0.821),
    ("imagenet64", "scm_distillation", 7e-5, 1024, 600_000, 1.6, 1.1),
  ],
)
def test_scm_is_as_published(
  data, kind, rate, batch_size, updates, std, level, built_as_it_is
):
  built = built_as_it_is(data, kind)
  stage = stages_of(built)[kind]
  has(stage, batch_size=batch_size, num_updates=updates)
  small = data == "cifar10"
  has(
    stage.optimizer,
    kind="radam" if small else "adam",
    learning_rate=rate,
    b1=0.9,
    b2=0.99,
    warmup=0,
    weight_decay=0.0,
    clip=0.0 if small else 10.0,
    eps=1e-8 if small else 1e-11,
    ema_decay=0.9999,
  )
  has(stage.objective, warmup=10_000, floor=0.1, dropout=kind == "scm_training")
  has(stage.objective.draw, mean=-1.0, std=std)
  sigma = built.denoiser.process.schedule.sigma(
    stage.objective.sampler.time(1, 2)
  )
  assert float(sigma) == pytest.approx(level, rel=1e-4)


def test_mean_flow_is_as_published(built_as_it_is):
  built = built_as_it_is("cifar10", "mean_flow")
  stage = stages_of(built)["mean_flow"]
  # 16,000 epochs of the whole batches of 1,024 in 50,000 images, and 200.
  has(stage, batch_size=1024, num_updates=16_000 * 48)
  has(
    stage.optimizer,
    kind="adam",
    learning_rate=6e-4,
    warmup=200 * 48,
    decay="constant",
    b1=0.9,
    b2=0.999,
    weight_decay=0.0,
    clip=0.0,
    ema_decay=0.9999,
  )
  has(
    stage.objective,
    tangent="data",
    equal=0.25,
    power=0.75,
    floor=1e-3,
    dropout=True,
    from_teacher=False,
    other_draw=None,
  )
  has(stage.objective.draw, mean=-2.0, std=2.0)
  has(built.denoiser.network.module, dropout=0.2, two_times=True)
  has(built.denoiser, output="velocity")

"""The papers' published settings, one function per paper.

Each function adds the stages of one paper to a config; `teacher` comes first.
Every number carries its source:
  [PD]       Salimans & Ho 2022, arXiv 2202.00512, main text
  [PD code]  its released code, google-research/diffusion_distillation
  [DS code]  released code of Luhman & Luhman 2021, tcl9876/Denoising_Student
  [CFD code] released code of Sun et al. 2023, zju-SWJ/RCFD
  [MM]       settings of Salimans et al. 2024 as its reproducibility page
             states them
  [MSCM]     Heek et al. 2024, Multistep Consistency Models, appendix A.1: the
             UViTs that the same group trains
  [mem]      recalled, not looked up
  [ours]     our choice where none of them says
"""

from typing import Any

Fields = dict[str, Any]

# Of the denoiser, per image and update, as objectives count them themselves.
PASSES = {
  "progressive": 5,
  "moment_matching": 5,
  "parameter_moment_matching": 5,
  "denoising_student": 3,
}


def teacher(
  config: Any,
  *,
  num_updates: int,
  learning_rate: float,
  batch_size: int,
  weight_decay: float,
  weighting: str = "truncated_snr",  # recommended in [PD], section 5.1
  discrete_steps: int = 0,  # continuous time [PD code]
  warmup: int = 1000,  # [PD code]
  judged: bool = True,  # [ours]
) -> None:
  """A teacher as Salimans & Ho 2022 train one, and a classifier to judge by.

  Deviations: ours clips the gradient after the mean over devices, where the
  released code clips on each device before it; our EMA has a ramp, see
  training/ema.py.

  Args:
    config: whose stages are set.
    num_updates: the main text of the paper states none.
    learning_rate, batch_size, weight_decay: see the data set's file.
    weighting, discrete_steps, warmup: of the paper unless said otherwise.
    judged: whether there is a classifier; not of images without labels.
  """
  config.run, config.stages = (), {}
  config.sampler = {
    "kind": "ddim",
    "grid": "uniform",
    "clip": True,
  }  # [PD code]
  config.guidance = {"weight": 0.0, "interval": (0.0, 1.0)}
  if judged:
    _add(config, "classifier", classifier_stage())
  _add(
    config,
    "teacher",
    {
      "source": "",  # imported:PATH for a teacher made elsewhere
      "objective": {
        "kind": "denoising",
        "weighting": weighting,
        "discrete_steps": discrete_steps,
      },
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": warmup,
        "decay": "constant",  # [PD code]
        "weight_decay": weight_decay,
        "clip": 1.0,  # [PD code]
        "ema_decay": 0.9999,  # [PD code]
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
    },
  )


def ddpm_teacher(
  config: Any,
  *,
  multipliers: tuple[int, ...],
  grid: str,
  first_time: float,
  num_updates: int,
  learning_rate: float,
  batch_size: int,
  dropout: float,
  judged: bool,
  remat: bool = False,
  dtype: str = "float32",
) -> None:
  """The teacher of Luhman & Luhman 2021: Ho et al.'s model and DDIM from it.

  Deviations: trained here, with settings of [ours], where the paper took
  published weights; see `teacher`.

  Args:
    config: whose model, sampler and stages are set.
    multipliers: of the network's channels, one per level [DS code].
    grid: of the sampler's times [DS code].
    first_time: where it begins, see sampling/sampler.py.
    num_updates, learning_rate, batch_size, dropout: [ours].
    judged: see `teacher`.
    remat, dtype: of the network [ours].
  """
  config.model = {
    "network": ddpm_network(
      multipliers, dropout=dropout, remat=remat, dtype=dtype
    ),
    "schedule": {  # [DS code]
      "kind": "linear_beta",
      "num_steps": 1000,
      "beta_min": 1e-4,
      "beta_max": 0.02,
    },
    "output": "eps",  # [DS code]
    "precondition": {  # [DS code]
      "kind": "identity",
      "noise": "index",
      "num_steps": 1000,
    },
    "label_dropout": 0.0,
  }
  teacher(
    config,
    num_updates=num_updates,
    learning_rate=learning_rate,
    batch_size=batch_size,
    weight_decay=0.0,  # [ours]
    weighting="snr",  # the error of eps [ours]
    discrete_steps=1000,  # [DS code]
    warmup=5000,  # [ours]
    judged=judged,
  )
  config.sampler = {
    "kind": "ddim",
    "grid": grid,
    "first_time": first_time,
    "clip": False,  # but for the stored image [DS code]
  }


def ddpm_network(
  multipliers: tuple[int, ...],
  *,
  dropout: float,
  remat: bool = False,
  dtype: str = "float32",
) -> Fields:
  """The U-Net of Ho et al. 2020, as [DS code] and [CFD code] have it."""
  return {
    "kind": "unet",
    "style": "ddpm",
    "channels": 128,
    "multipliers": multipliers,
    "num_blocks": 2,
    "attention": (16,),
    "num_heads": 1,
    "embed_dim": 512,
    "dropout": dropout,
    "remat": remat,
    "dtype": dtype,
  }


# Depth, width and heads of Peebles & Xie 2023 [mem].
DIT = {
  "S": (12, 384, 6),
  "B": (12, 768, 12),
  "L": (24, 1024, 16),
  "XL": (28, 1152, 16),
}


def dit_network(
  size: str,
  *,
  patch: int,
  remat: bool = False,
  dtype: str = "bfloat16",  # [ours]
) -> Fields:
  """The DiT of Peebles & Xie 2023 of a size of `DIT`: DiT-XL/2 has patch 2."""
  if size not in DIT:
    raise ValueError(f"size is {size!r}; pass one of {', '.join(DIT)}")
  depth, width, num_heads = DIT[size]
  return {
    "kind": "dit",
    "depth": depth,
    "width": width,
    "num_heads": num_heads,
    "patch": patch,
    "attention": "xla",
    "remat": remat,
    "dtype": dtype,
  }


def uvit_network(image_size: int) -> Fields:
  """The smaller UViT for ImageNet at 64x64 (394M) or 128x128 (397M) [MSCM].

  The larger ones have twice the channels, and dropout 0.1 in both stages of
  transformers [MSCM].
  """
  sizes = (64, 128)
  if image_size not in sizes:
    raise ValueError(f"image_size is {image_size}; pass one of {sizes}")
  fields = {
    "kind": "uvit",
    "channels": (256, 512, 1024),
    "num_blocks": (3, 3, 16),
    "conv_stages": 1,
    "dropout": (0.0, 0.0, 0.2),
  }
  if image_size == 128:
    fields |= {
      "channels": (128, 256, 512, 1024),
      "num_blocks": (3, 3, 3, 16),
      "conv_stages": 2,
      "dropout": (0.0, 0.0, 0.0, 0.1),
    }
  return fields | {
    "head_dim": 128,  # [ours]
    "embed_dim": 1024,  # [ours], as the published numbers of parameters suggest
    "attention": "xla",  # has the derivative of parameter_moment_matching
    "remat": True,  # [ours]
    "dtype": "bfloat16",  # [ours]
  }


def progressive(
  config: Any,
  *,
  learning_rate: float,
  batch_size: int,
  start_steps: int,
  end_steps: int = 1,  # [PD], section 5.2
  num_updates: int = 50_000,  # [PD], section 5.2
  decay: str = "linear",  # to zero over each round [PD], section 5.2
) -> None:
  """Salimans & Ho 2022: rounds of halving.

  Deviations: ours anneals the learning rate as the paper says, which the
  released code leaves to its caller; and see `teacher`.

  Args:
    config: to which the stage "halve" is added.
    learning_rate, batch_size: of Adam [PD code].
    start_steps: the teacher's before the first halving [PD], section 5.2.
    end_steps: the last student's.
    num_updates: of a round.
    decay: of the learning rate.
  """
  _add(
    config,
    "halve",
    {
      "objective": {"kind": "progressive", "weighting": "truncated_snr"},
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,  # [PD code]
        "decay": decay,
        "weight_decay": 0.0,  # [PD code]
        "clip": 1.0,  # [PD code]
        "ema_decay": 0.0,  # [PD code]
      },
      # Doubled for the 2-step and 1-step students [PD], section 5.2.
      "num_updates": num_updates,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "start_steps": start_steps,
      "end_steps": end_steps,
    },
  )


def classifier_features(
  config: Any,
  *,
  classifier: str,
  learning_rate: float = 5e-5,  # [CFD code]
  batch_size: int = 128,  # [CFD code]
  num_updates: int = 10_000,  # [CFD code]
  decay: str = "cosine",  # to zero over each round [CFD code]
  temperature: float = 0.95,  # with a ResNet18 [CFD code]
  dataset_weight: float = 0.003,  # with a ResNet18 [CFD code]
) -> None:
  """Sun et al. 2023: the last rounds of `progressive`, on features.

  Deviations: the times and the teacher are those of `progressive` here, in
  place of 1024 discrete ones; the classifier is fed what it was trained on
  (objective.classifier_input="reference_mismatch" feeds it what the released
  code does).

  Args:
    config: which has the stage "halve" already; "features" is added.
    classifier: the stage that makes it; or "imported:FILE", with its network
      in stages.features.classifier.
    learning_rate, batch_size, num_updates, decay: of a round.
    temperature: of the teacher's side; 0.9 with a DenseNet201 [CFD code].
    dataset_weight: of entropy and diversity; 0 with a DenseNet201 [CFD code].
  """
  _add(
    config,
    "features",
    {
      "objective": {
        "kind": "classifier_features",
        "temperature": temperature,
        "dataset_weight": dataset_weight,
        "entropy_share": 0.75,  # [CFD code]
        "classifier_input": "as_trained",
      },
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,
        "decay": decay,
        "weight_decay": 0.0,  # [CFD code]
        "clip": 1.0,  # [CFD code]
        "ema_decay": 0.0,  # [CFD code]
      },
      # Doubled for the 2-step and 1-step students [CFD code].
      "num_updates": num_updates,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": "halve/008", "classifier": classifier},
      "start_steps": 8,  # [CFD code]
      "end_steps": 1,
    },
  )


def moment_matching(
  config: Any,
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (8, 4, 2, 1),  # [ours]
  batch_size: int = 2048,  # [MM]
  num_updates: int = 200_000,  # [MM], at most
  select_every: int = 5000,  # [MM]
  select_images: int = 50_000,  # [ours]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.0,  # [ours]
  weighting: str = "clipped_snr",  # [ours]; the paper's is not known to us
  times: str = "grid",  # [ours]; the paper draws s from all times
) -> None:
  """Salimans et al. 2024, alternating: student and auxiliary by turns.

  An update is one turn, of the auxiliary or of the student. Deviations: the
  best student is chosen by the distance on this run's classifier, where the
  paper uses FID; t is drawn on the sampler's grid, see
  objectives/moment_matching.py.

  Args:
    config: to which the stage "moments" is added.
    learning_rate: the paper's is not known to us.
    num_steps: of the students, each trained by itself from the teacher.
    batch_size, num_updates: of each student.
    select_every: updates between distances; the best student is kept.
    select_images: per distance.
    warmup, ema_decay, weighting, times: see there.
  """
  _add(
    config,
    "moments",
    _moments(
      {"kind": "moment_matching", "weighting": weighting, "times": times},
      frozen={"teacher": "teacher"},
      learning_rate=learning_rate,
      num_steps=num_steps,
      batch_size=batch_size,
      num_updates=num_updates,
      select_every=select_every,
      select_images=select_images,
      warmup=warmup,
      ema_decay=ema_decay,
    ),
  )


def parameter_moment_matching(
  config: Any,
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (8, 4),  # [ours]
  batch_size: int = 2048,  # [MM]
  num_updates: int = 200_000,  # [MM], at most
  select_every: int = 5000,  # [MM]
  select_images: int = 50_000,  # [ours]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.0,  # [ours]
  weighting: str = "clipped_snr",  # [ours]
  times: str = "grid",  # [ours]
) -> None:
  """Salimans et al. 2024, in parameter space ("instant"): no auxiliary.

  Arguments and deviations as of `moment_matching`; the stage is
  "parameter_moments".
  """
  _add(
    config,
    "parameter_moments",
    _moments(
      {
        "kind": "parameter_moment_matching",
        "weighting": weighting,
        "times": times,
        "preconditioner": "adam",
      },
      frozen={"teacher": "teacher", "second_moments": "teacher"},
      learning_rate=learning_rate,
      num_steps=num_steps,
      batch_size=batch_size,
      num_updates=num_updates,
      select_every=select_every,
      select_images=select_images,
      warmup=warmup,
      ema_decay=ema_decay,
    ),
  )


def _moments(
  objective: Fields,
  *,
  frozen: Fields,
  learning_rate: float,
  num_steps: tuple[int, ...],
  batch_size: int,
  num_updates: int,
  select_every: int,
  select_images: int,
  warmup: int,
  ema_decay: float,
) -> Fields:
  """A stage of either kind of moment matching."""
  return {
    "objective": objective,
    # Plain ancestral sampling, with the smaller variance [MM]; the clipping is
    # [ours].
    "sampler": {
      "kind": "ancestral",
      "grid": "uniform",
      "noise": 0.0,
      "clip": True,
    },
    "optimizer": {
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": "linear",  # [ours]
      "b1": 0.0,  # [MM]
      "b2": 0.99,  # [MM]
      "eps": 1e-12,  # [MM]
      "weight_decay": 0.0,  # [ours]
      "clip": 1.0,  # [ours]
      "ema_decay": ema_decay,
    },
    "num_updates": num_updates,
    "batch_size": batch_size,
    "frozen": frozen,
    "num_steps": num_steps,
    "select": {
      "by": "distance",
      "every": select_every,
      "num_images": select_images,
    },
  }


def denoising_student(
  config: Any,
  *,
  pairs: Fields,
  optimizer: Fields,
  num_updates: int,
  batch_size: int,
  norm: str,
  form: str = "difference",  # X_T - network [DS code]
  select_every: int,
) -> None:
  """Luhman & Luhman 2021: pairs of the teacher, then regression on them.

  Deviations: the loss is a mean over pixels where theirs is a sum; images are
  rounded to bytes, where theirs are cut off; our EMA has a ramp.

  Args:
    config: to which the stages "pairs" and "denoising_student" are added.
    pairs: num_steps, num_pairs, held_out, shard_size, batch_size; where they
      are needed, sampler, store_noise, max_gigabytes, path.
    optimizer: as the paper's settings for a data set.
    num_updates, batch_size: of the student.
    norm: "l1" or "l2".
    form: of the student's output: "difference" for a teacher that predicts eps,
      else "x0".
    select_every: updates between held-out losses; the best student is kept.
  """
  stored = {"store_noise": True, "max_gigabytes": 0.0, "path": ""}
  _add(config, "pairs", {"kind": "pairs", **stored, **pairs})
  _add(
    config,
    "denoising_student",
    {
      "objective": {"kind": "denoising_student", "norm": norm},
      "sampler": {"kind": "one_step", "form": form, "clip": True},
      "optimizer": {
        "decay": "constant",  # [DS code]
        "eps": 1e-8,  # [DS code]
        "weight_decay": 0.0,  # [DS code]
        "clip": 0.0,  # [DS code]
        **optimizer,
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "pairs": "pairs",
      "select": {"by": "held_out_loss", "every": select_every, "patience": 0},
    },
  )


def compared(
  config: Any,
  *,
  learning_rate: float,
  moments_rate: float,
  parameter_rate: float,
  select_every: int,
  pairs: Fields,
) -> None:
  """Every other paper, with as many passes as the 1-step student of `halve`.

  A pass is one image forward through the denoiser; a gradient is three, and so
  is a derivative along the weights. What the classifiers, the held-out losses
  and the selecting distances take is not counted. The settings are [ours], as
  much alike as the papers allow. The numbers of updates are worked out here:
  one that is changed on the command line changes its own paper's budget.

  Args:
    config: which has the stage "halve"; all stages get its batch size.
    learning_rate: of feature distillation and the denoising student.
    moments_rate: of moment matching by turns.
    parameter_rate: of moment matching in parameter space.
    select_every: updates between scores.
    pairs: as of `denoising_student`; their passes are part of its budget.
  """
  halve = config.stages.halve
  batch_size, rounds = halve.batch_size, halve.start_steps.bit_length() - 1
  updates = halve.num_updates * (rounds + 2)  # the last two are twice as long
  budget = updates * batch_size * PASSES["progressive"]
  expert(config)
  # The same rounds as `halve` from its student of 8 steps on.
  classifier_features(
    config,
    classifier="expert",
    learning_rate=learning_rate,
    batch_size=batch_size,
    num_updates=halve.num_updates,
    decay="linear",
  )
  moments = {
    "batch_size": batch_size,
    "select_every": select_every,
    "select_images": 1000,
    "warmup": 100,
    "ema_decay": 0.998,
    "weighting": "clipped_snr",
  }
  moment_matching(
    config,
    learning_rate=moments_rate,
    num_updates=round(budget / batch_size / PASSES["moment_matching"]),
    **moments,
  )
  parameter_moment_matching(
    config,
    learning_rate=parameter_rate,
    num_updates=round(
      budget / batch_size / PASSES["parameter_moment_matching"]
    ),
    **moments,
  )
  made = pairs["num_steps"] * (pairs["num_pairs"] + pairs["held_out"])
  denoising_student(
    config,
    pairs=pairs,
    optimizer={
      "learning_rate": learning_rate,
      "warmup": 100,
      "decay": "linear",
      "b1": 0.9,
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=round(
      (budget - made) / batch_size / PASSES["denoising_student"]
    ),
    batch_size=batch_size,
    norm="l1",  # [DS code], CIFAR-10
    form="x0",
    select_every=select_every,
  )


def by_the_clock(
  config: Any, minutes: float, parts: dict[str, float], most: int
) -> None:
  """Ends every stage by the clock, at its part of the minutes.

  Unlike the papers, whose stages have numbers of updates: the learning rate is
  held for a quarter of each round and annealed from there, see
  training/clock.py.

  Args:
    config: whose stages are all there; --config.minutes changes all of them.
    minutes: of training, compiling not counted.
    parts: of each stage.
    most: updates of a round that trains, however fast.
  """
  config.minutes = float(minutes)
  total = config.get_ref("minutes")
  for name in config.run:
    stage = config.stages[name]
    stage.minutes = total * (parts[name] / sum(parts.values()))
    if stage.get("kind") != "pairs":
      stage.num_updates = most


def classifier_stage() -> Fields:
  """The judge of a run: [ours]; no paper's FID is measured with it."""
  return {
    "objective": {
      "kind": "classification",
      "label_smoothing": 0.0,
      "noise": 0.0,
      "crop": 0,
    },
    "optimizer": {
      "learning_rate": 1e-3,
      "warmup": 100,
      "decay": "cosine",
      "weight_decay": 1e-2,
      "ema_decay": 0.0,
    },
    "num_updates": 20_000,
    "batch_size": 128,
  }


def expert(config: Any) -> None:
  """A second classifier, of other random numbers, for students to learn from.

  So that no student is judged by the network that it was trained to please.
  """
  _add(config, "expert", classifier_stage())


def shared(
  *, log: int = 100, checkpoint: int = 5000, observe: int = 0
) -> Fields:
  """What every config has, so that the command line can change it."""
  return {
    "seed": 0,
    "mesh": {"data": -1, "fsdp": 1, "overrides": ()},
    "cadence": {
      "log": log,
      "checkpoint": checkpoint,
      "observe": observe,
      "keep": 2,
      "max_skipped": 50,
      "stall_seconds": 600,
    },
    "evaluation": {
      "num_images": 50_000,
      "num_steps": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
      "batch_size": 500,
      "seed": 0,
      "gap_images": 500,
      "inception": "",  # the file of the FID network's weights
      "reference": "",  # an .npz of its statistics of the data
    },
  }


def choose(recipe: str, recipes: dict[str, str]) -> str:
  """The recipe itself, or one line that names those there are."""
  if recipe not in recipes:
    raise ValueError(f"recipe is {recipe!r}; pass one of {', '.join(recipes)}")
  return recipe


def _add(config: Any, name: str, stage: Fields) -> None:
  """One more stage, after those there are.

  It has the fields of its kind of stage that are no paper's, so that the
  command line can change them.
  """
  stage = {"minutes": 0.0, **stage}
  if stage.get("kind") != "pairs":
    stage = {"updates_per_call": 1, "teacher_dtype": "float32", **stage}
    if stage["objective"]["kind"] != "classification":
      # Images are judged every so many updates, and the best weights kept.
      never = {"by": "distance", "every": 0, "patience": 0, "num_images": 1000}
      stage = {"select": never, **stage}
    stage["optimizer"] = {"accumulate": 1, **stage["optimizer"]}
  config.run = (*config.run, name)
  config.stages[name] = stage


def proportional_warmups(config: Any) -> None:
  """Lets each warm-up keep its share of num_updates when that is changed.

  For small data sets, whose stages people shorten to try them; published
  warm-ups are left as they are. Called when the stages are complete.
  """
  for stage in config.stages.values():
    warmup = stage.get("optimizer", {}).get("warmup", 0)
    if warmup:
      length = stage.get_ref("num_updates")
      stage.optimizer.warmup = length * warmup // stage.num_updates

"""Students of two times: MeanFlow, Geng et al. 2025, and flow maps."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_student

SAMPLER: Fields = {
  "kind": "flow_map",
  "grid": "uniform",
  "clip": True,  # [ours]
}


def mean_flow(
  config: Any,
  *,
  learning_rate: float = 6e-4,  # [MF code]
  batch_size: int = 1024,  # [MF code]
  num_updates: int = 768_000,  # 16,000 epochs [MF code]
  warmup: int = 9600,  # 200 epochs [MF code]
  decay: str = "constant",  # [MF code]
  clip: float = 0.0,  # [MF code]
  ema_decay: float = 0.9999,  # [MF code]
  draw: Fields | None = None,
  equal: float = 0.25,  # [MF code]
  tangent: str = "data",
  from_teacher: bool = False,  # [MF code]
  dropout: bool = True,  # [MF code]
  num_steps: tuple[int, ...] = (1, 2, 4),  # [ours]
) -> None:
  """Adds the stage "mean_flow": average velocities from data, Geng et al. 2025.

  Args:
    config: a config whose network has two times, with a teacher.
    learning_rate, batch_size, num_updates, warmup, decay, clip, ema_decay:
      settings of the student, whose defaults are those for CIFAR-10.
    draw: the distribution of both times; by default that for CIFAR-10.
    equal: the share of a batch with s = t.
    tangent: "data" for MeanFlow, or "student" for improved MeanFlow (iMF).
    from_teacher: whether the student begins with the teacher's weights.
    dropout: whether the student has the network's dropout.
    num_steps: the numbers of steps at which the student is judged.
  """
  usual = {"kind": "logit_normal", "mean": -2.0, "std": 2.0}  # [MF code]
  add_student(
    config,
    "mean_flow",
    objective={
      "kind": "mean_flow",
      "tangent": tangent,
      "draw": draw or usual,
      "equal": equal,
      "power": 0.75,  # [MF code]
      "floor": 1e-3,  # [MF code]
      "dropout": dropout,
      "from_teacher": from_teacher,
    },
    sampler=SAMPLER,
    optimizer={
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": decay,
      "weight_decay": 0.0,  # [MF code]
      "clip": clip,
      "ema_decay": ema_decay,
    },
    teacher="teacher" if from_teacher else "",
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )


def flow_map(
  config: Any,
  *,
  learning_rate: float,
  batch_size: int,
  num_updates: int,
  identity: str = "lagrangian",
  equal: float = 0.25,
  warmup: int = 0,
  ema_decay: float = 0.9999,
  num_steps: tuple[int, ...] = (1, 2, 4),
) -> None:
  """Adds the stage "flow_map": a teacher's flow map. All settings are [ours].

  We could not read the settings of Boffi et al. 2024 and Sabour et al. 2025.

  Args:
    config: a config with a teacher, whose network has two times.
    learning_rate, batch_size, num_updates, warmup, ema_decay: settings of the
      student.
    identity: "lagrangian", "eulerian" or "semigroup".
    equal: the share of a batch with s = t.
    num_steps: the numbers of steps at which the student is judged.
  """
  add_student(
    config,
    "flow_map",
    objective={
      "kind": "flow_map",
      "identity": identity,
      "draw": {"kind": "uniform"},
      "equal": equal,
    },
    sampler=SAMPLER,
    optimizer={
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": "linear",
      "weight_decay": 0.0,
      "clip": 1.0,
      "ema_decay": ema_decay,
    },
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )

"""Tests the recipe whose student is told its guidance weight."""

from tests.configs.given import has, rounds_of, stages_of


def test_both_stages_of_guidance_distillation_fit_each_other(built_as_it_is):
  built = built_as_it_is("imagenet64", "guidance_distillation")
  stages = stages_of(built)
  has(built.denoiser, null_label=1000, told_guidance=True, output="v")
  for name in ("guided", "halve"):
    has(stages[name], batch_size=2048, told=(0.0, 4.0))
    has(stages[name].objective, weighting="truncated_snr")
    has(
      stages[name].optimizer,
      learning_rate=1e-4,
      warmup=0,
      decay="linear",
      weight_decay=0.0,
      clip=1.0,
      ema_decay=0.0,
    )
  (guided,) = rounds_of(built, "guided")
  assert guided.all_steps == (1024,)
  halved = rounds_of(built, "halve")
  assert [round_.num_steps for round_ in halved] == [
    2**power for power in reversed(range(10))
  ]
  assert halved[0].frozen == {"teacher": "guided/any"}
  # The student costs as much as one of an unguided teacher.
  passes = stages["halve"].objective.passes
  assert passes(("student",), 512, False).units == 5
  assert stages["guided"].objective.passes(("student",), 0, True).units == 5

"""Noise schedules for tests, by the name that a test's id shows."""

from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  CosineBeta,
  LinearBeta,
  RectifiedFlow,
  Shifted,
)

SCHEDULES = {
  "cosine": Cosine(),
  "linear": LinearBeta(),
  "edm": EDM(),
  "flow": RectifiedFlow(),
  "shifted": Shifted(base=Cosine(), image_size=128),
}
ALL_SCHEDULES = SCHEDULES | {
  "cosine_beta": CosineBeta(),
  "shifted_linear": Shifted(base=LinearBeta(), image_size=32),
}

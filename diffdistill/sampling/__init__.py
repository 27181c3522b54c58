"""From noise to image: pure loops over a bound denoiser."""

from diffdistill.kinds import Kinds

SAMPLERS = Kinds(
  __name__,
  {
    "ddim": "ddim:DDIM",
    "ancestral": "ancestral:Ancestral",
    "heun": "heun:Heun",
    "one_step": "one_step:OneStep",
  },
)

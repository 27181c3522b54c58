"""From noise to image: pure loops over a bound denoiser."""

from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.heun import Heun
from diffdistill.sampling.one_step import OneStep

SAMPLERS = {
  "ddim": DDIM,
  "ancestral": Ancestral,
  "heun": Heun,
  "one_step": OneStep,
}

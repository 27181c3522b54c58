"""Samplers: pure loops that call a denoiser to turn noise into images."""

from diffdistill.kinds import Kinds

SAMPLERS = Kinds(
  __name__,
  {
    "ddim": "ddim:DDIM",
    "ancestral": "ancestral:Ancestral",
    "heun": "heun:Heun",
    "one_step": "one_step:OneStep",
    "flow_map": "flow_map:FlowMap",
    "renoising": "renoising:Renoising",
    "dpm_solver": "dpm_solver:DPMSolver",
  },
)

"""diffdistill: few-step students of diffusion teachers, in JAX.

The rooms, each importing only from those before it:

  arrays       names of what flows
  diffusion    the mathematics: schedules, processes, predictions, weightings
  networks     the architectures, sealed behind `Network`
  denoiser     network + process = D(params, x_t, t) -> Prediction(x0, eps)
  sampling     from noise to image
  objectives   the papers, one file each
  data         batch(step), a pure function of (seed, step)
  training     the loop, its state, its checkpoints, its reports
  evaluation   distances, sample sheets, curves
  experiment   config -> Experiment
  cli          the commands
"""

__version__ = "0.1.0"

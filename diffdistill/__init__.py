"""diffdistill: few-step students of diffusion teachers, in JAX.

The rooms, each importing only from those before it:

  arrays       names of what flows
  signals      how each signal ends a command
  files        files that are written whole or not at all
  relay        keeps JAX from aborting a process when the first one is lost
  environment  settings of JAX that change what is computed
  agreement    whether several processes run the same command
  links        how several processes learn that one of them is lost
  hosts        the processes of one run, and what only the first of them does
  diffusion    the mathematics: schedules, processes, predictions, weightings,
               guidance
  networks     the architectures, sealed behind `Network`
  denoiser     network + process = D(params, x_t, t) -> Prediction(x0, eps)
  sampling     from noise to image
  objectives   the papers, one file each
  data         batch(step), a pure function of (seed, step)
  interop      models of other frameworks, in and out
  training     the loop, its state, its checkpoints, its reports
  evaluation   distances, sample sheets, curves
  experiment   a recipe, built; from_config builds it, with config_fields and
               workdir
  planning     what a recipe costs on a pod, by the pod's compiler
  reporting    report.html: one page of one run, or of several
  model_card   what a reader must know of an exported model
  exporting    a trained model in other formats; exported opens one again
  judging      who of a run is judged, by what, at what cost
  benchmark    a stage's loop against its bare update, and, in ideal, that
               against the passes its paper needs
  commands     what each command does
  cli          flags and refusals
"""

__version__ = "0.1.0"

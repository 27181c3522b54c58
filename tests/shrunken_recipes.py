"""Any recipe with tiny networks and few updates, for the commands of the pages.

The name after the colon is the name of the recipe, such as digits:progressive.
All images are of the digits' shape, so that few programs are compiled.
"""

import importlib

STEPS = 16


def get_config(recipe):
  """The recipe, shrunken; the digits replace data that is not here."""
  file, _, name = recipe.partition(":")
  module = importlib.import_module(f"diffdistill.configs.{file}")
  config = module.get_config(*([name] if name else []))
  config.model.network = {"kind": "mlp", "width": 8, "depth": 1}
  config.model.label_dropout = 0.0
  config.data.conditional = False
  if file == "folder":
    config.data.source.update(image_size=8, channels=1)
  else:
    config.data.source = {"kind": "digits", "split": "train"}
  classifier = {"channels": 8, "multipliers": (1,), "num_blocks": 1}
  config.classifier.update(classifier, dropout=0.0)
  config.cadence.update(log=1, checkpoint=2)
  config.evaluation.update(num_images=60, batch_size=60, gap_images=20)
  config.evaluation.num_steps = (1, 2, 4, 8)
  for name in config.run:
    stage = config.stages[name]
    stage.update(num_updates=4, batch_size=16)
    stage.optimizer.warmup = 0
    if "start_steps" in stage:
      stage.start_steps = STEPS
    if "select" in stage:
      stage.select.every = 0
  return config

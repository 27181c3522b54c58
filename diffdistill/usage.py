"""The usage and the version, which a command line prints without JAX."""

from collections.abc import Sequence

from diffdistill import __version__

USAGE = """usage: diffdistill COMMAND [--flag=value ...]

  train     --config=digits:progressive --workdir=runs/digits
            [--config.stages.halve.num_updates=200 ...]
  sample    --workdir=runs/digits [--round=halve/004] [--num_images=64]
            [--num_steps=4] [--seed=0] [--label=3] [--guidance=1.5]
            [--interpolate=11] [--out=grid.png]
  evaluate  --workdir=runs/digits [--num_steps=1,2,4,8] [--num_images=10000]
            [--inception=pt_inception-2015-12-05-6726825d.pth]
            [--reference=statistics.npz]
  run       --config=cifar10:half_hour --workdir=runs/half_hour
            [--minutes=9.5] [--reserve=60] [--results=results] [--cpu]
            trains, evaluates, benchmarks and reports; 75 when time is over
  carry     --workdir=runs/digits --out=FOLDER
  report    --workdir=runs/digits[,runs/other] [--workdir=another]
            [--out=report.html]
  pack      --config=cifar10:progressive
            [--config.data.source.path=FOLDER] --out=data/cifar10_{split}.npz
  import    --from=FILE_OR_FOLDER [--settings=FILE.json] --out=FOLDER
  export    --workdir=runs/digits [--round=halve/004] [--num_steps=4]
            [--format=diffusers|safetensors|stablehlo] --out=FOLDER
  plan      --config=imagenet64:progressive --topology=v5e:8x8
            [--json]
  benchmark --config=digits:progressive [--stage=teacher]
            [--num_updates=50] [--num_steps=1,2,4,8] [--profile=traces]
  list      objectives, networks, data sources, configs and recipes

train, sample and evaluate run on several hosts, with one command on each:

  --multihost [--expect_devices=32]
            [--coordinator=HOST:PORT --num_processes=4 --process_id=0]

Exit status 0; 1 refused; 2 bad usage; 75 told to leave by SIGTERM or SIGHUP;
130 interrupted; 70 hung, failed or lost another process. After 75, 130 and 70
the same command goes on from what train and evaluate have saved."""
HELP = ("help", "--help", "-h")


def answer(arguments: Sequence[str]) -> str | None:
  """The text that is asked for; None where a command is to run."""
  first, *others = arguments or ["help"]
  if first == "--version":
    return f"diffdistill {__version__}"
  return USAGE if first in HELP or "--help" in others else None

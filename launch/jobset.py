"""Prints the manifest of a training in a GKE cluster, a JobSet for kubectl.

  python launch/jobset.py --name=moments \\
    --tpu=tpu-v5-lite-podslice --topology=16x16 --chips_per_host=4 --spot \\
    --package=git+https://github.com/OWNER/diffdistill@v0.1.0 \\
    --config=imagenet64:moment_matching \\
    --workdir=gs://bucket/runs/moments | kubectl apply --filename=-

or with --gpu=nvidia-h100-80gb --hosts=4 --chips_per_host=8. The cluster needs
JobSet (jobset.sigs.k8s.io/docs/installation), which restarts the training. To
watch, and to delete it at the end:

  kubectl logs --follow --tail=-1 --selector=\\
    jobset.sigs.k8s.io/jobset-name=moments,batch.kubernetes.io/job-completion-index=0
  kubectl delete jobset,configmap,role,rolebinding moments

"Plan TPUs in GKE" (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
lists the names of TPUs, their topologies and the chips per host. This file
needs only Python's standard library.
"""

import argparse
import json
import math
import pathlib
import re
import shlex
import string
import sys
from typing import Any, NoReturn

_HERE = pathlib.Path(__file__).parent
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# For each flag, the pattern of its values, and what a refusal asks for. The
# patterns of names are those of Kubernetes ("Object Names and IDs",
# kubernetes.io/docs/concepts).
_FORMS = {
  "name": (
    r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
    "at most 40 lower-case letters, digits and hyphens, a letter first and no"
    " hyphen last",
  ),
  "namespace": (_LABEL, "lower-case letters, digits and hyphens"),
  "service_account": (rf"{_LABEL}(\.{_LABEL})*", "the name of an account"),
  "tpu": (_LABEL, "GKE's name of a TPU, such as tpu-v6e-slice"),
  "gpu": (_LABEL, "GKE's name of a GPU, such as nvidia-h100-80gb"),
  "topology": (r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", "a shape such as 16x16"),
  "image": (r"\w[\w./:@-]*", "REGISTRY/NAME:TAG"),
  "extras": (r"[a-z0-9_-]*(,[a-z0-9_-]+)*", "names with commas between them"),
  "package": (
    r"git\+(https|ssh)://\S+[^/\s]+@[\w./-]+",
    "git+https://HOST/REPOSITORY@REF with a tag or a commit, so that every"
    " restart trains the same code, or build an --image that has diffdistill",
  ),
  "workdir": (
    r"gs://[^/\s]+/\S*[^/\s]",
    "a folder in a bucket, which all hosts can reach: gs://bucket/runs/name",
  ),
}


class Parser(argparse.ArgumentParser):
  """A parser of flags that refuses with one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"jobset.py: {message}; see --help\n")


def _parser() -> Parser:
  parser = Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--name", required=True, help="name of the JobSet")
  add("--config", required=True, help="recipe, as in imagenet64:progressive")
  add("--workdir", required=True, help="folder, as in gs://bucket/runs/name")
  add("--tpu", help="GKE's name of a TPU, such as tpu-v5-lite-podslice")
  add("--topology", help="shape of each TPU slice, such as 16x16")
  add("--slices", type=int, default=1, help="number of TPU slices")
  add("--gpu", help="GKE's name of a GPU, such as nvidia-h100-80gb")
  add("--hosts", type=int, default=1, help="number of nodes with GPUs")
  add("--chips_per_host", type=int, required=True, help="TPUs or GPUs per host")
  add(
    "--spot", action="store_true", help="use spot machines, which are cheaper"
  )
  add("--namespace", default="default", help="namespace of the JobSet")
  add("--service_account", default="default", help="account for the bucket")
  add("--image", default="python:3.12", help="image with bash, curl and git")
  add("--package", help="git+https://...@REF; default: the image's diffdistill")
  add("--extras", default="tfds,gcs", help="extras of diffdistill to install")
  add(
    "--env",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="variable of the containers, such as TFDS_DATA_DIR=gs://bucket/tfds",
  )
  add("--max_restarts", type=int, default=100, help="limit of restarts")
  return parser


def _complaint(flags: argparse.Namespace, overrides: list[str]) -> str:
  """A line about the first wrong flag; "" if all are right."""
  for override in overrides:
    if not re.fullmatch(r"--config\.[\w.]+=.*", override):
      # The value is not shown, because it may be secret if --env is misspelt.
      name = override.partition("=")[0]
      return f"{name!r} is no flag; overrides are --config.x=y on one line"
  for flag, value in vars(flags).items():
    if isinstance(value, str):
      pattern, wanted = _FORMS.get(flag, (".+", "one line"))
      if not re.fullmatch(pattern, value) or not value.isprintable():
        return f"--{flag} is {value!r}; pass {wanted}"
    least = 0 if flag == "max_restarts" else 1
    if type(value) is int and value < least:
      return f"--{flag} is {value}; pass {least} or more"
  for pair in flags.env:
    if not re.fullmatch(r"[A-Za-z_]\w*=.*", pair, re.ASCII):
      return "--env has a variable without a name, or of several lines"
  if (flags.tpu is None) == (flags.gpu is None):
    return f"--tpu is {flags.tpu} and --gpu {flags.gpu}; pass one"
  if (flags.tpu is None) != (flags.topology is None):
    return f"--topology is {flags.topology}; pass it with --tpu, and only then"
  if flags.tpu and _chips(flags) % flags.chips_per_host:
    return (
      f"--chips_per_host is {flags.chips_per_host}, which does not divide the"
      f" {_chips(flags)} chips of --topology={flags.topology}"
    )
  return ""


def _chips(flags: argparse.Namespace) -> int:
  """The number of chips in one slice."""
  if flags.gpu:
    return flags.hosts * flags.chips_per_host
  return math.prod(map(int, flags.topology.split("x")))


def _script(flags: argparse.Namespace, overrides: list[str]) -> str:
  """The shell script that the container of each host runs."""
  chips = flags.slices * _chips(flags)
  several = ["--multihost"] if chips > flags.chips_per_host else []
  run = shlex.join(
    [
      *("exec", "bash", "/launch/host.sh", "run", "diffdistill", "train"),
      f"--config={flags.config}",
      f"--workdir={flags.workdir}",
      *overrides,
      f"--expect_devices={chips}",
      *several,
    ]
  )
  if not flags.package:
    return run
  jax = "jax[tpu]" if flags.tpu else "jax[cuda12,k8s]"
  extras = f"[{flags.extras}]" if flags.extras else ""
  install = shlex.join(
    [
      *("bash", "/launch/host.sh", "install"),
      *(jax, f"diffdistill{extras} @ {flags.package}"),
    ]
  )
  # If the install fails, try again later: the package index may be down.
  return f"{install} || exit 70; {run}"


def _literal(text: str) -> str:
  """Escapes a text so that Kubernetes does not change it.

  In commands and variables, Kubernetes replaces $(NAME) by the value of NAME,
  and $$ by $ ("Define a Command and Arguments for a Container",
  kubernetes.io/docs/tasks/inject-data-application).
  """
  return text.replace("$", "$$")


def manifest(flags: argparse.Namespace, overrides: list[str]) -> str:
  """The manifest: the template with the values of the flags."""
  resource = "google.com/tpu" if flags.tpu else "nvidia.com/gpu"
  spot = {"cloud.google.com/gke-spot": "true"} if flags.spot else {}
  if flags.tpu:
    selector = {
      "cloud.google.com/gke-tpu-accelerator": flags.tpu,
      "cloud.google.com/gke-tpu-topology": flags.topology,
    }
    # Each slice is a node pool, and runs one job.
    pool = "cloud.google.com/gke-nodepool"
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": pool}
    env = []
  else:
    selector = {"cloud.google.com/gke-accelerator": flags.gpu}
    annotations = {}
    # GKE installs the driver of GPUs in this folder.
    env = ["LD_LIBRARY_PATH=/usr/local/nvidia/lib64"]
  files = (_HERE / "host.sh", _HERE.parent / "requirements.txt")
  pairs = (pair.partition("=") for pair in (*env, *flags.env))
  values: dict[str, Any] = {
    **vars(flags),
    "hosts": _chips(flags) // flags.chips_per_host,
    "files": {path.name: path.read_text() for path in files},
    "annotations": annotations,
    "node_selector": {**selector, **spot},
    "tolerations": [
      {"key": taint, "operator": "Exists", "effect": "NoSchedule"}
      for taint in (resource, *spot)
    ],
    "limits": {resource: flags.chips_per_host},
    "env": [{"name": n, "value": _literal(v)} for n, _, v in pairs],
    "script": _literal(_script(flags, overrides)),
  }
  template = string.Template((_HERE / "jobset.yaml").read_text())
  written = {name: json.dumps(value) for name, value in values.items()}
  return template.substitute(written)


def main() -> int:
  flags, overrides = _parser().parse_known_args()
  complaint = _complaint(flags, overrides)
  if complaint:
    print(f"jobset.py: {complaint}", file=sys.stderr)
    return 1
  print(manifest(flags, overrides), end="")
  return 0


if __name__ == "__main__":
  sys.exit(main())

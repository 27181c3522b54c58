"""Prints the manifest of a training in a GKE cluster, a JobSet for kubectl.

  python launch/jobset.py --name=moments \\
    --tpu=tpu-v5-lite-podslice --topology=16x16 --chips_per_host=4 --spot \\
    --package=git+https://github.com/OWNER/diffdistill@v0.1.0 \\
    --config=imagenet64:moment_matching \\
    --workdir=gs://bucket/runs/moments | kubectl apply --filename=-

or with --gpu=nvidia-h200-141gb --hosts=4 --chips_per_host=8. The cluster needs
JobSet (jobset.sigs.k8s.io/docs/installation), which restarts the training. A
config that is a file of your own is copied to the hosts. Before anything is
printed, admit.py checks the config here and says what its plan expects. To
watch, and to delete it at the end:

  kubectl logs --follow --tail=-1 --selector=\\
    jobset.sigs.k8s.io/jobset-name=moments,batch.kubernetes.io/job-completion-index=0
  kubectl delete jobset,configmap,role,rolebinding moments

"Plan TPUs in GKE" (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
lists the names of TPUs, their topologies and the chips per host; a host of
tpu7x has four chips, and its topologies have three numbers, such as 2x2x2.
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

import admit
import gke_pod

_HERE = pathlib.Path(__file__).resolve().parent
# A chip of this kind is two devices of JAX.
_TWO_DEVICES = "tpu7x"
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
  "gpu": (_LABEL, "GKE's name of a GPU, such as nvidia-h200-141gb"),
  "topology": (r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", "a shape such as 16x16"),
  "image": (r"\w[\w./:@-]*", "REGISTRY/NAME:TAG"),
  "network": ("rdma|none", "rdma or none"),
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
  add("--gpu", help="GKE's name of a GPU, such as nvidia-h200-141gb")
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
  add(
    "--secret",
    action="append",
    default=[],
    metavar="NAME=SECRET/KEY",
    help="variable with a value of a Kubernetes Secret in the same namespace,"
    " such as WANDB_API_KEY=wandb/key",
  )
  add("--network", help="of GPUs: rdma or none; default: by the GPU")
  add("--cuda", type=int, default=13, help="12 if drivers are older than 580")
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
    name = pair.partition("=")[0]
    if re.search("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", name, re.IGNORECASE):
      return (
        f"--env={name} may be secret, and anybody can read a manifest; pass"
        f" --secret={name}=SECRET/KEY, and make it with `kubectl create secret"
        " generic SECRET --from-literal=KEY=...`"
      )
  for pair in flags.secret:
    if not re.fullmatch(r"[A-Za-z_]\w*=[a-z0-9.-]+/[\w.-]+", pair, re.ASCII):
      return (
        "--secret is not NAME=SECRET/KEY, the names of a Secret and its key"
      )
  if (flags.tpu is None) == (flags.gpu is None):
    return f"--tpu is {flags.tpu} and --gpu {flags.gpu}; pass one"
  if (flags.tpu is None) != (flags.topology is None):
    return f"--topology is {flags.topology}; pass it with --tpu, and only then"
  if flags.tpu and flags.network:
    return f"--network is {flags.network}; pass it only with --gpu"
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


def _devices(flags: argparse.Namespace) -> int:
  """The number of devices that JAX will see in all."""
  each = 2 if flags.tpu == _TWO_DEVICES else 1
  return flags.slices * _chips(flags) * each


def _rdma(flags: argparse.Namespace) -> bool:
  """Whether the hosts' GPUs are connected by RDMA."""
  usual = flags.hosts > 1 and flags.gpu in gke_pod.WITH_RDMA
  return flags.network == "rdma" or (flags.network is None and usual)


def _train(flags: argparse.Namespace, overrides: list[str]) -> list[str]:
  """The flags of `diffdistill train` on a host."""
  several = flags.slices * _chips(flags) > flags.chips_per_host
  return [
    f"--config={admit.carried(flags.config, '/launch')}",
    f"--workdir={flags.workdir}",
    *overrides,
    f"--expect_devices={_devices(flags)}",
    *(["--multihost"] if several else []),
  ]


def _script(flags: argparse.Namespace, overrides: list[str]) -> str:
  """The shell script that the container of each host runs."""
  host = ("bash", "/launch/host.sh")
  train = ("run", "diffdistill", "train", *_train(flags, overrides))
  lines = [gke_pod.SETUP] if _rdma(flags) else []
  if flags.package:
    jax = "jax[tpu]" if flags.tpu else f"jax[cuda{flags.cuda},k8s]"
    extras = f"[{flags.extras}]" if flags.extras else ""
    package = f"diffdistill{extras} @ {flags.package}"
    # If the install fails, try again later: the package index may be down.
    lines.append(f"{shlex.join([*host, 'install', jax, package])} || exit 70")
  return "; ".join([*lines, shlex.join(["exec", *host, *train])])


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
  else:
    selector = {"cloud.google.com/gke-accelerator": flags.gpu}
    annotations = {}
  files = [_HERE / "host.sh", _HERE.parent / "requirements.txt"]
  own = admit.own_file(flags.config)
  # GKE installs the driver of GPUs in this folder.
  driver = ["LD_LIBRARY_PATH=/usr/local/nvidia/lib64"] if flags.gpu else []
  values: dict[str, Any] = {
    **vars(flags),
    **gke_pod.attached(flags.name, _rdma(flags)),
    "hosts": _chips(flags) // flags.chips_per_host,
    "files": {p.name: p.read_text() for p in (*files, *([own] if own else []))},
    "annotations": annotations,
    "node_selector": {**selector, **spot},
    "tolerations": [
      {"key": taint, "operator": "Exists", "effect": "NoSchedule"}
      for taint in (resource, *spot)
    ],
    "limits": {resource: flags.chips_per_host},
    "environment": gke_pod.environment([*driver, *flags.env], flags.secret),
    "script": gke_pod.literal(_script(flags, overrides)),
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
  train = [f"--config={flags.config}", *_train(flags, overrides)[1:]]
  if not admit.admitted(flags.tpu or flags.gpu, train):
    return 1
  if flags.gpu and flags.hosts > 1 and not _rdma(flags):
    print(
      "jobset.py: the hosts' GPUs talk over the pods' usual network, which is"
      f" slow; --network is none for --gpu={flags.gpu}",
      file=sys.stderr,
    )
  print(manifest(flags, overrides), end="")
  return 0


if __name__ == "__main__":
  sys.exit(main())

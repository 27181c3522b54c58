"""Trains on TPU pods: rents, installs, watches, restarts, gives back.

  python launch/tpu_pod.py --name=moments --project=mine --zone=us-west4-a \\
    --accelerator=v5litepod-256 --spot \\
    --package=git+https://github.com/OWNER/diffdistill@v0.1.0 \\
    --config=configs/imagenet64.py:moment_matching \\
    --workdir=gs://bucket/runs/moments

It waits for the pod, installs the package on every host, checks that all hosts
answer and see all chips, starts the training so that it does not need this
process, prints the first host's log, rents anew and goes on when the pod is
taken away, and deletes it at the end, also when it is refused or interrupted.
Nothing is remembered here: every step looks first at what is there, so the same
command can be run again at any time, and finds a training that runs.

Exit status 0: finished; 1: refused, a person must act; 2: bad usage; 130:
interrupted.
"""

import pathlib
import sys

import queued_resource
import shell
import topology
from patience import Patience
from pod_hosts import PodHosts
from queued_resource import QueuedResource
from shell import RefusalError, call, pause, say

_LOOKS_AT_DELETION = 100


class Launch:
  """One training on one queued resource.

  Args:
    resource: the pod.
    hosts: of it.
    patience: with failures.
    poll_seconds: between looks, at first.
  """

  def __init__(
    self,
    resource: QueuedResource,
    hosts: PodHosts,
    patience: Patience,
    poll_seconds: float,
  ):
    self._resource = resource
    self._hosts = hosts
    self._patience = patience
    self._poll_seconds = poll_seconds
    self._is_ours = False  # what has the name

  def plan(self) -> list[tuple[str, list[str]]]:
    """The commands of a run that nothing interrupts, each with its reason."""
    r, h = self._resource, self._hosts
    return [
      ("nothing of that name is there", r.describe()),
      ("rent", r.create()),
      ("again until it is ACTIVE", r.describe()),
      ("all hosts answer, and nothing has run there", h.states()),
      ("install", h.copy()),
      ("", h.install()),
      ("all hosts find each other and see all chips", h.check()),
      ("train, detached; nothing where it has started", h.start(1)),
      ("it runs on all hosts", r.describe()),
      ("", h.states()),
      ("the first host's log, until it ends", h.log(1, 1)),
      ("it has finished on all hosts; if not, install and so on", r.describe()),
      ("", h.states()),
      ("give back, until nothing is there", r.describe()),
      ("", r.delete()),
      ("", r.describe()),
    ]

  def until_finished(self) -> None:
    """Looks and does the next step, until the training has finished."""
    said, looks = "", 0
    while True:
      try:
        state, why = self._resource.state()
        self._is_ours = True
      except ConnectionError as error:
        state, why = "not to be reached", str(error)
      if state != said:
        say(f"{self._resource.name} is {state or 'not there'} {why}".rstrip())
        said, looks = state, 0
      if state is None:
        self._create()
      elif state in queued_resource.LOST:
        if state == "FAILED":
          self._patience.failed("renting", f"the request failed: {why}")
        self._delete()
      elif state == queued_resource.ACTIVE:
        self._patience.passed("renting")
        if self._hosts.step():
          return
      else:
        pause(self._poll_seconds, looks)
        looks += 1

  def _create(self) -> None:
    done = call(self._resource.create())
    if not done.status or "ALREADY_EXISTS" in done.errors:
      return
    if queued_resource.needs_a_person(done):
      raise RefusalError(f"gcloud does not create it: {done.reason}")
    self._patience.failed("renting", f"not granted: {done.reason}")

  def _delete(self) -> None:
    done = call(self._resource.delete())
    if not done.status:
      self._patience.passed("deleting")
      return
    if queued_resource.needs_a_person(done):
      raise RefusalError(f"gcloud does not delete it: {done.reason}")
    self._patience.failed("deleting", f"not deleted: {done.reason}")

  def tear_down(self) -> None:
    """Deletes the pod; returns when nothing is there."""
    if not self._is_ours:
      return
    by_hand = f"by hand: {shell.join(self._resource.delete())}"
    for looks in range(_LOOKS_AT_DELETION):
      try:
        state, _ = self._resource.state()
        if state is None:
          return
        if looks:
          pause(self._poll_seconds, looks - 1)
        if state not in queued_resource.LEAVING:
          done = call(self._resource.delete())
          if done.status and queued_resource.needs_a_person(done):
            raise RefusalError(
              f"gcloud does not delete it: {done.reason}; {by_hand}"
            )
      except ConnectionError as error:
        say(str(error))
        pause(self._poll_seconds, looks)
    raise RefusalError(f"{self._resource.name} is still there; {by_hand}")

  def keep(self) -> None:
    say(f"kept; to give it back: {shell.join(self._resource.delete())}")


def _parser() -> shell.Parser:
  parser = shell.Parser(__doc__)
  add = parser.add_argument
  add("--project", required=True, help="of Google Cloud")
  add("--zone", required=True, help="one that has the accelerator")
  add("--accelerator", required=True, help="such as v5litepod-256")
  add("--slices", type=int, default=1, help="that train together")
  add("--package", required=True, help="git+https://...@REF, or a wheel")
  add(
    "--create_flag",
    action="append",
    default=[],
    help="of queued-resources create, such as --create_flag=--reserved; repeat",
  )
  add("--max_failures", type=int, default=8, help="of a kind in a row")
  return parser


def main() -> int:
  flags, overrides = _parser().read()
  for name in ("slices", "max_failures"):
    if getattr(flags, name) < 1:
      raise RefusalError(f"--{name} is {getattr(flags, name)}; pass 1 or more")
  resource = QueuedResource(
    name=flags.name,
    project=flags.project,
    zone=flags.zone,
    slice=topology.parse(flags.accelerator),
    num_slices=flags.slices,
    spot=flags.spot,
    create_flags=tuple(flags.create_flag),
  )
  wheel = [pathlib.Path(p) for p in [flags.package] if p.endswith(".whl")]
  patience = Patience(flags.max_failures, flags.workdir, flags.poll_seconds)
  hosts = PodHosts(
    resource,
    shell.train_command(flags, overrides, resource.devices, resource.hosts),
    shell.requirements(flags.package, flags.extras, "tpu"),
    (*shell.HOST_FILES, *wheel),
    patience,
    flags.poll_seconds,
  )
  launch = Launch(resource, hosts, patience, flags.poll_seconds)
  if flags.dry_run:
    for reason, command in launch.plan():
      print(*([f"# {reason}"] if reason else []), shell.join(command), sep="\n")
    return 0
  shell.need("gcloud", "install it: https://cloud.google.com/sdk/docs/install")
  end = launch.keep if flags.keep else launch.tear_down
  shell.finally_do(end, launch.until_finished)
  say("finished")
  return 0


if __name__ == "__main__":
  sys.exit(shell.guard(main))

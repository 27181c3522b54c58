"""Slices of TPUs that Google Cloud grants when it has them, by gcloud.

The commands are those of `gcloud compute tpus queued-resources`, whose create,
describe, delete, ssh and scp are in the gcloud reference (cloud.google.com/sdk/
gcloud/reference/compute/tpus/queued-resources); the states are those of "Manage
queued resources" (cloud.google.com/tpu/docs/queued-resources).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import shell
from shell import RefusalError
from topology import Slice

# What waits turns into ACTIVE or FAILED by itself, what leaves disappears.
ACTIVE = "ACTIVE"
LEAVING = ("SUSPENDING", "DELETING")
LOST = ("SUSPENDED", "FAILED")

# gcloud writes the code of an error into its message. These do not go away by
# waiting; quota (RESOURCE_EXHAUSTED), UNAVAILABLE and the like may.
_FOR_A_PERSON = (
  "INVALID_ARGUMENT",
  "PERMISSION_DENIED",
  "UNAUTHENTICATED",
  "unrecognized arguments",
  "Invalid value",
  "active account selected",
  "auth login",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueuedResource:
  """The commands of one request for slices.

  Args:
    name: of the request; of its slice, or, with -0 and so on, of its slices.
    project, zone: where it is.
    slice: what each slice is.
    num_slices: that train together, over the slower network between them.
    spot: cheaper, and can be taken away.
    create_flags: more of `create`, such as --reserved.
  """

  name: str
  project: str
  zone: str
  slice: Slice
  num_slices: int
  spot: bool
  create_flags: tuple[str, ...]

  @property
  def hosts(self) -> int:
    return self.num_slices * self.slice.hosts

  @property
  def devices(self) -> int:
    return self.num_slices * self.slice.chips

  def _gcloud(self, verb: str, *arguments: str) -> list[str]:
    return [
      *("gcloud", "compute", "tpus", "queued-resources", verb),
      *arguments,
      f"--project={self.project}",
      f"--zone={self.zone}",
      "--quiet",
    ]

  def create(self) -> list[str]:
    if self.num_slices == 1:
      nodes = [f"--node-id={self.name}"]
    else:
      nodes = [f"--node-count={self.num_slices}", f"--node-prefix={self.name}"]
    return self._gcloud(
      "create",
      self.name,
      *nodes,
      f"--accelerator-type={self.slice.accelerator}",
      f"--runtime-version={self.slice.runtime}",
      *(["--spot"] if self.spot else []),
      *self.create_flags,
    )

  def describe(self) -> list[str]:
    return self._gcloud("describe", self.name, "--format=json")

  def delete(self) -> list[str]:
    # Without --force an active one is kept.
    return self._gcloud("delete", self.name, "--force")

  def copy(self, files: Sequence[pathlib.Path]) -> list[str]:
    paths = map(shell.shown, files)
    return self._gcloud("scp", *paths, f"{self.name}:", *self._everywhere())

  def ssh(self, command: str) -> list[str]:
    """On every host at once."""
    return self._gcloud(
      "ssh", self.name, f"--command={command}", *self._everywhere()
    )

  def ssh_first(self, command: str) -> list[str]:
    """On the host of process 0, whose loss is noticed within minutes."""
    return self._gcloud(
      "ssh",
      self.name,
      f"--command={command}",
      "--node=0",
      "--worker=0",
      "--ssh-flag=-oServerAliveInterval=30",
    )

  def _everywhere(self) -> list[str]:
    # The hosts of one training wait for each other: none may come in a second
    # batch, of which 64 hosts are the default.
    return ["--node=all", "--worker=all", f"--batch-size={self.hosts}"]

  def state(self) -> tuple[str | None, str]:
    """ACTIVE and so on, None where there is no such request; and why, if said.

    Raises:
      RefusalError: where gcloud may not say, or another run has the name.
      ConnectionError: where it cannot say now.
    """
    done = shell.call(self.describe())
    if done.status:
      if "NOT_FOUND" in done.errors:
        return None, ""
      if needs_a_person(done):
        raise RefusalError(
          f"gcloud does not describe {self.name}: {done.reason}"
        )
      raise ConnectionError(done.reason)
    description = json.loads(done.output)
    self._check_same(description)
    state = description.get("state", {})
    error = state.get("failedData", {}).get("error", {})
    return state.get("state", "UNKNOWN"), error.get("message", "")

  def _check_same(self, description: Mapping) -> None:
    specs = description.get("tpu", {}).get("nodeSpec", [{}])
    found = specs[0].get("node", {}).get("acceleratorType")
    if found not in (None, self.slice.accelerator):
      raise RefusalError(
        f"{self.name} exists already and is a {found}, not a"
        f" {self.slice.accelerator}; pass another --name, or delete it:"
        f" {shell.join(self.delete())}"
      )


def needs_a_person(done: shell.Done) -> bool:
  """Whether gcloud's error stays until somebody does something."""
  return any(words in done.errors for words in _FOR_A_PERSON)

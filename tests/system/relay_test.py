"""The relay forwards both ways, and hides that the other end is lost."""

import socket

import pytest

from diffdistill.system.relay import Relay

SECONDS = 60


@pytest.fixture
def ends():
  """(the relay, the near end of a connection through it, the far end)."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    relay = Relay(*server.getsockname())
    with socket.create_connection(("127.0.0.1", relay.port), SECONDS) as near:
      far, _ = server.accept()
      far.settimeout(SECONDS)
      with far:
        yield relay, near, far


def test_it_forwards_both_ways(ends):
  _, near, far = ends
  for source, target in ((near, far), (far, near)):
    source.sendall(b"a" * 300_000)
    with target.makefile("rb") as file:
      assert file.read(300_000) == b"a" * 300_000


def test_before_the_processes_are_linked_it_closes_what_is_closed(ends):
  _, near, far = ends
  far.close()
  assert near.recv(1) == b""


def test_then_it_keeps_the_near_end_open(ends):
  relay, near, far = ends
  relay.holds = True
  far.close()
  near.settimeout(0.3)
  with pytest.raises(TimeoutError):
    near.recv(1)
  near.sendall(b"still there")


def test_a_near_end_that_closes_is_closed_there(ends):
  relay, near, far = ends
  relay.holds = True
  near.close()
  assert far.recv(1) == b""


def test_a_place_that_is_not_up_yet_is_tried_again_by_the_client():
  with socket.create_server(("127.0.0.1", 0)) as server:
    place = server.getsockname()
  relay = Relay(*place)
  with socket.create_connection(("127.0.0.1", relay.port), SECONDS) as near:
    assert near.recv(1) == b""
  with (
    socket.create_server(place),
    socket.create_connection(("127.0.0.1", relay.port), SECONDS) as near,
  ):
    near.sendall(b"now")

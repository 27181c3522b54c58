"""Tests that the relay forwards both ways, and hides that an end is lost."""

import socket

import pytest

from diffdistill.system.relay import Relay

SECONDS = 60


@pytest.fixture
def ends():
  """Returns a relay, and both ends of a connection through it."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    relay = Relay(*server.getsockname())
    with socket.create_connection(("127.0.0.1", relay.port), SECONDS) as near:
      far, _ = server.accept()
      far.settimeout(SECONDS)
      with far:
        yield relay, near, far


def test_the_relay_forwards_in_both_directions(ends):
  _, near, far = ends
  for source, target in ((near, far), (far, near)):
    source.sendall(b"a" * 300_000)
    with target.makefile("rb") as file:
      assert file.read(300_000) == b"a" * 300_000


def test_without_hold_the_relay_closes_the_near_end(ends):
  _, near, far = ends
  far.close()
  assert near.recv(1) == b""


def test_with_hold_the_relay_keeps_the_near_end_open(ends):
  relay, near, far = ends
  relay.holds = True
  far.close()
  near.settimeout(0.3)
  with pytest.raises(TimeoutError):
    near.recv(1)
  near.sendall(b"still there")


def test_the_relay_closes_the_far_end_when_the_near_end_closes(ends):
  relay, near, far = ends
  relay.holds = True
  near.close()
  assert far.recv(1) == b""


def test_the_relay_closes_if_the_service_has_not_started():
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

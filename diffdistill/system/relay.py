"""Relays the connection between this process and JAX's coordination service.

The service runs in the first process. If the first process is lost, JAX's
client sees that its connection closes, and aborts this process at once with a
C++ stack trace. So the client connects to a relay, a thread of this process,
which forwards all bytes and keeps the connection open. Then links.py notices
the loss and ends this process with one line.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Any

SECONDS_TO_CONNECT = 10
CHUNK = 1 << 16


class Relay:
  """Forwards connections to a host and port.

  Args:
    host, port: the address to which connections are forwarded.
  """

  def __init__(self, host: str, port: int):
    self._place = host, port
    # Whether JAX is kept from seeing that a connection is lost. `hosts.join`
    # sets this to True when links.py has connected the processes.
    # to True when links.py has connected the processes.
    self.holds = False
    self._server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=self._accept, name="relay", daemon=True).start()

  @property
  def port(self) -> int:
    """The port on this host to which JAX connects."""
    return self._server.getsockname()[1]

  def _accept(self) -> None:
    while True:
      near, _ = self._server.accept()
      try:
        far = socket.create_connection(self._place, SECONDS_TO_CONNECT)
      except OSError:
        # The first process may not have started yet. JAX's client tries again.
        near.close()
        continue
      threading.Thread(
        target=self._forward, args=(near, far), name="relay", daemon=True
      ).start()

  def _forward(self, near: socket.socket, far: socket.socket) -> None:
    far.settimeout(None)
    for end in (near, far):
      end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with selectors.DefaultSelector() as selector:
      selector.register(near, selectors.EVENT_READ, far)
      selector.register(far, selectors.EVENT_READ, near)
      while True:
        for key, _ in selector.select():
          source = near if key.data is far else far
          data = b""
          with contextlib.suppress(OSError):
            data = source.recv(CHUNK)
          if data:
            with contextlib.suppress(OSError):
              key.data.sendall(data)
          elif source is far and self.holds:
            selector.unregister(far)
          else:
            near.close()
            far.close()
            return


@contextlib.contextmanager
def relayed(distributed: Any) -> Iterator[list[Relay]]:
  """Makes JAX's new clients connect through relays, inside the `with`.

  Args:
    distributed: JAX's module that makes the clients.
  """
  library = distributed._jax
  make = library.get_distributed_runtime_client
  relays: list[Relay] = []

  def through_relay(address: str, process_id: int, **options):
    if process_id:
      host, _, port = address.rpartition(":")
      relays.append(Relay(host.strip("[]"), int(port)))
      address = f"127.0.0.1:{relays[-1].port}"
    return make(address, process_id, **options)

  library.get_distributed_runtime_client = through_relay
  try:
    yield relays
  finally:
    library.get_distributed_runtime_client = make

"""Connections through which each process learns that another one is lost.

Each process has a connection to the first process. If a process dies, the
system closes its connections; if a whole machine is lost, TCP probes notice it
within seconds. A process that ends normally says goodbye first. JAX notices a
lost process too, but later, and then it aborts the others with a C++ stack
trace.

The messages are lines of text:

  hello TOKEN INDEX   from another process to the first, once
  bye                 the sender is about to end normally
  told                a signal told the sender to leave, and it ends now
  lost INDEX          from the first: another process is lost
  lost INDEX told     from the first: a signal told another process to leave
"""

import contextlib
import secrets
import selectors
import socket
import threading

from diffdistill.system import signals

# TCP probes a silent machine after SECONDS_IDLE, and gives up after PROBES
# probes.
SECONDS_IDLE, SECONDS_BETWEEN_PROBES, PROBES = 5, 5, 3
SECONDS_TO_CONNECT = 20
# The most bytes of the first line, because the sender may be a stranger.
LONGEST = 200
GO_ON = "start all processes again: they go on from what they have saved"


class Links:
  """The connections of this process to the other processes.

  Args:
    index: the index of this process.
  """

  def __init__(self, index: int):
    self._index = index
    self._selector = selectors.DefaultSelector()
    # The connections, by the index of the process at the other end.
    self._peers: dict[int, socket.socket] = {}
    self._buffers: dict[socket.socket, bytes] = {}
    self._said_bye: set[int] = set()
    self._were_told: set[int] = set()
    self._left = False
    self._token = ""
    self._lost: int | None = None
    self._known = threading.Event()

  def listen(self) -> tuple[int, str]:
    """Accepts the other processes on the first one; returns (port, token)."""
    both = socket.has_dualstack_ipv6()
    server = socket.create_server(
      ("", 0),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
    )
    self._token = secrets.token_hex(16)
    self._selector.register(server, selectors.EVENT_READ)
    self._start()
    return server.getsockname()[1], self._token

  def connect(self, host: str, port: int, token: str) -> None:
    """Connects to the first process.

    Raises:
      OSError: if the first process cannot be reached.
    """
    peer = socket.create_connection((host, port), SECONDS_TO_CONNECT)
    peer.sendall(f"hello {token} {self._index}\n".encode())
    self._add(peer)
    self._peers[0] = peer
    self._start()

  def leave(self) -> None:
    """Says goodbye, because this process is about to end normally."""
    self._left = True
    self._say("bye")

  def told(self) -> None:
    """Tells the other processes that a signal ends this process."""
    self._say("told")

  def lost(self, seconds: float) -> int | None:
    """Returns the index of a lost process; waits `seconds` for such news."""
    self._known.wait(seconds)
    return self._lost

  def _start(self) -> None:
    threading.Thread(target=self._watch, name="links", daemon=True).start()

  def _say(self, line: str) -> None:
    for peer in tuple(self._peers.values()):
      # If sending fails, `_read` notices that the process is lost.
      with contextlib.suppress(OSError):
        peer.send(f"{line}\n".encode())

  def _add(self, peer: socket.socket) -> None:
    peer.setblocking(False)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
      ("TCP_KEEPIDLE", SECONDS_IDLE),
      ("TCP_KEEPINTVL", SECONDS_BETWEEN_PROBES),
      ("TCP_KEEPCNT", PROBES),
    ):
      if hasattr(socket, name):
        peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._buffers[peer] = b""
    self._selector.register(peer, selectors.EVENT_READ)

  def _watch(self) -> None:
    while True:
      for key, _ in self._selector.select():
        peer = key.fileobj
        assert isinstance(peer, socket.socket)
        if peer in self._buffers:
          self._read(peer)
        else:
          with contextlib.suppress(OSError):
            self._add(peer.accept()[0])

  def _read(self, peer: socket.socket) -> None:
    try:
      data = peer.recv(4096)
    except BlockingIOError:
      return
    except OSError:
      data = b""
    *lines, rest = (self._buffers[peer] + data).split(b"\n")
    self._buffers[peer] = rest
    for line in lines:
      self._heard(peer, line.decode(errors="replace").split())
    index = self._index_of(peer)
    if not data or (index is None and len(rest) > LONGEST):
      self._selector.unregister(peer)
      del self._buffers[peer]
      peer.close()
      if index is not None:
        del self._peers[index]
        if index not in self._said_bye:
          self._lose(index)

  def _heard(self, peer: socket.socket, words: list[str]) -> None:
    index = self._index_of(peer)
    match words:
      case ["hello", self._token, number] if self._index == 0:
        self._peers[int(number)] = peer
      case ["bye"] if index is not None:
        self._said_bye.add(index)
      case ["told"] if index is not None:
        self._were_told.add(index)
      case ["lost", number, *told] if index == 0:
        if told:
          self._were_told.add(int(number))
        self._lose(int(number))

  def _index_of(self, peer: socket.socket) -> int | None:
    return next((i for i, p in self._peers.items() if p is peer), None)

  def _lose(self, index: int) -> None:
    """Ends this process after another one was lost."""
    was_told = index in self._were_told
    self._lost = index
    self._known.set()
    self._say(f"lost {index} told" if was_told else f"lost {index}")
    if was_told:
      signals.end(f"process {index} was told to leave; {GO_ON}", 75)
    elif not self._left or signals.listener() is not None:
      signals.end(f"process {index} is lost; {GO_ON}", 70)

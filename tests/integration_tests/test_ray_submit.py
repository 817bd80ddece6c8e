"""The cluster files, run: `ray up`, `ray submit` and `ray job submit` over ssh, and a Slurm of two nodes.

Each machine is a set of namespaces on this one: a network, a host name, processes, a /tmp, and for ssh a home of its
own. Nothing of the user's is touched (`ray stop` ends every Ray that it can see), and the ports and addresses of the
shipped files need no change. What is in them is what is run; only addresses, user and key are put in.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from integration_tests.driver import QUICK, Driver, check_exactly_once
from services import free_port

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "198.18.77"  # kept for tests of networks: nobody's own
DEBIAN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SSH = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
pytestmark = [pytest.mark.slow, pytest.mark.nightly]

SLURM = """
ClusterName=lab
SlurmctldHost=node2({network}.2)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/slurm/controller
SlurmdSpoolDir=/var/spool/slurm/node
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=node2 NodeAddr={network}.2 CPUs=2
NodeName=node3 NodeAddr={network}.3 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SLURM_DAEMONS = """
for folder in /run /var/spool /etc/munge /etc/slurm /var/lib/munge /sys/fs/cgroup; do mount -t tmpfs none $folder; done
mkdir -p /run/munge /run/sshd /var/log/munge /var/spool/slurm/controller /var/spool/slurm/node
install -m 600 {folder}/munge.key /etc/munge/munge.key
cp {folder}/slurm.conf /etc/slurm/
echo CgroupPlugin=cgroup/v1 > /etc/slurm/cgroup.conf
printf '127.0.0.1 localhost\n{network}.2 node2\n{network}.3 node3\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
munged --force
[ $(hostname) = node2 ] && slurmctld
slurmd
"""


def need(*programs):
    """Skip, by name, where something is missing; fail in CI, where nothing may be."""
    missing = [name for name in programs if shutil.which(name, path=f"{DEBIAN}:{os.environ['PATH']}") is None]
    why = f"missing: {', '.join(missing)}" if missing else "root is needed to make namespaces" if os.geteuid() else ""
    if why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, **options)


class Proxy(threading.Thread):
    """The way out of the lab, for pip alone: an HTTP proxy on the bridge that only connects."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ready, self.port = threading.Event(), 0

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        server = await asyncio.start_server(self._connect, f"{NETWORK}.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await server.serve_forever()

    async def _connect(self, reader, writer):
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


class Machine:
    """One machine of the lab, with an sshd in it."""

    def __init__(self, lab, number, *, daemons, home, environment):
        self.lab, self.ip, self.namespace = lab, f"{NETWORK}.{number}", f"{lab.bridge}n{number}"
        self.folder = lab.folder / f"node{number}"
        for name in ("home", "tmp"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "tmp").chmod(0o1777)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
        shared_again = f"mkdir -p {lab.shared}\nmount --bind /srv {lab.shared}"  # it lies below the /tmp that is hidden
        config = [f"ListenAddress {self.ip}", "HostKey /srv/.lab/host_key", "AuthorizedKeysFile /srv/.lab/key.pub"]
        config += ["PermitRootLogin prohibit-password", "PasswordAuthentication no", "PidFile none", "UsePAM no"]
        config += ["StrictModes no", "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items())]
        (self.folder / "sshd_config").write_text("\n".join(config) + "\n")
        script = textwrap.dedent(f"""
            set -e
            mount --make-rprivate /
            hostname node{number}
            mount --bind {lab.shared} /srv
            mkdir -p /srv/.lab /srv/home /run/sshd
            mount -t tmpfs none /srv/.lab
            cp {self.folder}/host_key {self.folder}/sshd_config {lab.folder}/key.pub /srv/.lab/
            chmod 600 /srv/.lab/host_key
            mount -t tmpfs none /var/log
            touch /var/log/lastlog
            mount -t proc proc /proc
        """)
        script += daemons + (f"mount -t tmpfs none {ROOT}\nmount --bind {self.folder}/home ~root\n" if home else "")
        script += f"mount --bind {self.folder}/tmp /tmp\n{shared_again}\n"
        script += "/usr/sbin/sshd -D -e -f /srv/.lab/sshd_config\n:"  # bash stays the first process, and reaps others
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self.namespace, "master", lab.bridge, "up")
        for words in (f"addr add {self.ip}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run("ip", "-n", self.namespace, *words.split())
        run("ip", "-n", self.namespace, "route", "add", "default", "via", f"{NETWORK}.1")
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "bash", "-c", script]
        with (self.folder / "log.txt").open("wb") as log:
            command = ["ip", "netns", "exec", self.namespace, *unshare]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def ssh(self, command):
        """Run a command there; return what it printed."""
        ssh = ["ssh", *SSH, "-i", str(self.lab.key), f"root@{self.ip}", f"[ ! -f ~/.bashrc ] || . ~/.bashrc; {command}"]
        return run(*ssh, capture_output=True, text=True, timeout=120).stdout

    def tunnel(self, port):
        """Open the tunnel that the docs print; return its process and this end's port."""
        here = free_port()
        ssh = ["ssh", *SSH, "-i", str(self.lab.key), "-N", "-L", f"{here}:127.0.0.1:{port}", f"root@{self.ip}"]
        process = subprocess.Popen(ssh, start_new_session=True)
        wait_for(lambda: answer(f"http://127.0.0.1:{here}/") is not None, seconds=60)
        return process, here

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        subprocess.run(["ip", "link", "del", self.namespace], capture_output=True, check=False)
        run("ip", "netns", "del", self.namespace)
        shutil.rmtree(self.folder)  # an environment is 6.5 GB


class Lab:
    """Machines on a bridge, the folder that they share, and the user's own."""

    def __init__(self, folder):
        self.folder, self.bridge, self.machines = folder, f"mmfa{os.getpid() % 100000}", []
        self.shared, self.key, self.client = folder / "shared", folder / "key", folder / "client"
        for path in (self.shared, self.client / "tmp"):
            path.mkdir(parents=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def add(self, *, daemons="", home=False, environment=None):
        number = len(self.machines) + 2
        self.machines.append(Machine(self, number, daemons=daemons, home=home, environment=environment or {"LAB": "1"}))

    def close(self):
        for machine in self.machines:
            machine.close()
        run("ip", "link", "del", self.bridge)
        shutil.rmtree(self.shared / "pip", ignore_errors=True)  # 3 GB

    def config(self, *, workers):
        """Write onprem.yaml for these machines; return the file."""
        config = yaml.safe_load((ROOT / "tune/clusters/onprem.yaml").read_text())
        head, *others = [machine.ip for machine in self.machines]
        config["provider"] |= {"head_ip": head, "worker_ips": others[:workers]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.key)}
        file = self.folder / f"{workers}.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    def ray(self, *words, timeout=900):
        """Run the ray command as the user does, from the checkout; return what it printed."""
        home = {"HOME": self.client, "TMPDIR": self.client / "tmp", "RAY_TMPDIR": self.client / "tmp"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        environment |= {name: str(path) for name, path in home.items()} | {"RAY_AUTH_MODE": "token", "COLUMNS": "200"}
        command = [str(Path(sys.executable).with_name("ray")), *map(str, words)]
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ran.stdout + ran.stderr)


def wait_for(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(1)


def answer(url, token=None):
    """Return the status of an answer, or None where there is none."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two machines with nothing but Debian on them; pip has a way out and a cache that they share."""
    need("sshd", "ssh-keygen", "rsync", "ip", "unshare")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    proxy = Proxy()
    proxy.start()
    try:
        assert proxy.ready.wait(10)
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        pip |= {"PIP_PROXY": f"http://{NETWORK}.1:{proxy.port}", "PIP_CACHE_DIR": "/srv/pip"}
        for _ in range(2):
            lab.add(home=True, environment=pip)
        lab.ray("get-auth-token", "--generate")
        (lab.client / ".ray" / "auth_token").chmod(0o600)
        yield lab
    finally:
        lab.close()


def nodes_of_trials(head):
    """Return the nodes on which actors that train have been."""
    actors = json.loads(head.ssh("ray list actors --format json"))
    return {actor["node_id"] for actor in actors if actor["class_name"] == "ImplicitFunc"}


def check_packages(head):
    """What runs there came from setup_commands: pinned, not editable, in the environment that they made."""
    code = "import mmfa, ray, studies, tune; print(*(m.__file__ for m in (mmfa, ray, studies, tune)))"
    places = head.ssh(f"cd / && python -c '{code}'").split()
    assert len(places) == 4 and all(place.startswith("/root/mmfa-venv/lib/") for place in places)
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
    frozen = head.ssh("pip freeze").splitlines()
    there = dict(line.lower().split("==") for line in frozen if "==" in line)
    assert {"torch", "ray", "optuna", "mlflow", "psycopg", "boto3"} <= set(there)
    assert {name: version for name, version in there.items() if pins.get(name, version) != version} == {}
    assert not [line for line in frozen if line.startswith("-e")]


def check_refusals(head, token):
    """Without the token nothing is given: not by the dashboard, not by Ray itself."""
    tunnel, port = head.tunnel(8265)
    try:
        url = f"http://127.0.0.1:{port}/api/jobs/"
        assert [answer(url), answer(url, "0" * 64), answer(url, token)] == [401, 403, 200]
        assert answer(f"http://{head.ip}:8265/") is None, "the dashboard is to be on loopback only"
    finally:
        tunnel.kill()
        tunnel.wait(30)
    join = "import ray; ray.init(logging_level='CRITICAL'); print('joined')"
    for environment, expected in (("RAY_AUTH_MODE=disabled", ""), (f"RAY_AUTH_TOKEN={'0' * 64}", ""), ("", "joined")):
        assert head.ssh(f'{environment} timeout 60 python -c "{join}" || true').strip() == expected


def test_one_machine(lab):
    """`ray up`, `ray submit` as the docs have it, results fetched, `ray job submit`, `ray down`."""
    config, head = lab.config(workers=0), lab.machines[0]
    token = (lab.client / ".ray" / "auth_token").read_text()
    lab.ray("up", "-y", config)
    check_packages(head)
    printed = lab.ray("submit", config, "tune/run_study.py", "--", "--study", "smoke")
    assert "Found: " in printed and "@candidate is now version 1" in printed

    lab.ray("rsync-down", config, "~/mmfa-studies/", lab.client / "results")
    (result,) = (lab.client / "results").glob("smoke-????????????.json")
    assert json.loads(result.read_text())["terminal"] == 3
    fetched = [path for path in (lab.client / "results").rglob("*") if path.is_file()]
    assert fetched and not [path for path in fetched if token.encode() in path.read_bytes()]

    jobs = json.loads(head.ssh("ray list jobs --format json"))
    assert [(job["type"], job["status"]) for job in jobs] == [("DRIVER", "SUCCEEDED")], "a Ray of its own?"
    assert jobs[0]["entrypoint"] == "python /root/run_study.py --study smoke" and nodes_of_trials(head)
    check_refusals(head, token)

    tunnel, port = head.tunnel(8265)
    job = ["job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", "."]
    try:
        printed = lab.ray(*job, "--", "python", "tune/run_study.py", "--study", "smoke", "--out", "~/by-job")
    finally:
        tunnel.kill()
        tunnel.wait(30)
    assert "Found: " in printed and "succeeded" in printed
    assert json.loads(head.ssh("cat ~/by-job/smoke-????????????.json"))["terminal"] == 3
    lab.ray("down", "-y", config)
    assert "raylet" not in head.ssh("ps -eo comm")


def test_two_machines(lab):
    """The head sets up the worker; trials run on both; `ray down` ends both."""
    config, (head, worker) = lab.config(workers=1), lab.machines
    lab.ray("up", "-y", config)
    wait_for(lambda: "2 local.cluster.node" in head.ssh("ray status 2>&1 || true"), seconds=900)
    check_packages(worker)
    printed = lab.ray("submit", config, "tune/run_study.py", "--", "--study", "smoke", "--out", "/srv/studies")
    assert "Found: " in printed
    assert len(nodes_of_trials(head)) == 2
    lab.ray("down", "-y", config)
    wait_for(lambda: "raylet" not in worker.ssh("ps -eo comm"), seconds=180)


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of two nodes."""
    need("sshd", "ip", "unshare", "slurmctld", "slurmd", "sbatch", "munged")
    lab = Lab(tmp_path / "lab")
    try:
        (lab.folder / "munge.key").write_bytes(os.urandom(1024))
        (lab.folder / "slurm.conf").write_text(SLURM.format(network=NETWORK))
        for _ in range(2):
            lab.add(
                daemons=SLURM_DAEMONS.replace("{folder}", str(lab.folder)).replace("{network}", NETWORK),
                environment={"HOME": "/srv/home", "MMFA_VENV": sys.prefix},
            )
        wait_for(lambda: lab.machines[0].process.poll() is None and idle(lab.machines[0]), seconds=60)
        yield lab
    finally:
        lab.close()


def idle(head):
    with contextlib.suppress(subprocess.CalledProcessError):
        return head.ssh("sinfo -h -o '%D %T'").strip() == "2 idle"
    return False


def test_slurm_requeued(slurm, embedded_cache):
    """A job that is requeued in the middle goes on, and ends once; it leaves nothing behind."""
    head, work = slurm.machines[0], slurm.shared / "work"
    work.mkdir()
    shutil.copytree(embedded_cache, slurm.shared / "cache")
    driver = Driver(work, cache=slurm.shared / "cache", study=QUICK)
    options = " ".join(driver.command[2:])
    script = ROOT / "tune/clusters/slurm.sh"
    head.ssh(f"cd {work} && sbatch --parsable --cpus-per-task=1 --gpus-per-node=0 {script} {options}")
    log = work / "mmfa-study-1.log"

    wait_for(lambda: len(driver.epochs()) >= 4, seconds=300)
    head.ssh("scontrol requeue 1")
    wait_for(lambda: head.ssh("squeue -h -o %T").strip() == "PENDING", seconds=120)
    assert "Ray runs on 2 nodes." in log.read_text() and not list(work.glob("out/tiny-*.json"))
    head.ssh("scontrol update JobId=1 StartTime=now")  # Slurm would wait for two minutes
    wait_for(lambda: not head.ssh("squeue -h").strip(), seconds=600)

    job = head.ssh("scontrol show job 1")
    assert "JobState=COMPLETED" in job and "Restarts=1" in job, log.read_text()
    check_exactly_once(driver, trials=4, epochs=3, confirmations=6)
    assert not [path for path in work.iterdir() if path.name.startswith(".mmfa-study")], "the token is still there"
    for machine in slurm.machines:
        assert "raylet" not in machine.ssh("ps -eo comm") and "mmfa-study" not in machine.ssh("ls /tmp")

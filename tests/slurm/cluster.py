"""A real SLURM on this machine: accounting, a controller and two nodes with GPUs that are none.

The daemons are Debian's, run in the foreground as children of the tests, and end with them. Node
names are distinguished by UTS namespaces, a GPU is a device file like /dev/null.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server")
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "unshare")
NODES = ("n1", "n2")
ACCOUNT, PARTITION = "lab", "gpu"

_ETC = Path("/etc/slurm")
_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def what_is_missing() -> str | None:
    """Say what a cluster lacks here and cannot get; None: nothing. Installs nothing."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if any((_ETC / name).exists() and not (_ETC / name).is_symlink() for name in _FILES):
        return f"this machine has a SLURM of its own ({_ETC})"
    if _lacking() and shutil.which("apt-get") is None:
        return f"{', '.join(_lacking())} not found, and no apt-get to install them with"
    return None


def install() -> None:
    """Install what is lacking from the distribution's packages.

    Raises:
        RuntimeError: it cannot be had.
    """
    if _lacking():
        _install()
    if _lacking():
        raise RuntimeError(f"{', '.join(_lacking())} could not be installed: {PACKAGES}")


_FILES = ("slurm.conf", "gres.conf")


def _lacking() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]


def _install() -> None:
    # Debian starts what it installs; this file, where it answers 101, forbids that.
    policy = Path("/usr/sbin/policy-rc.d")
    forbidden = not policy.exists()
    if forbidden:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        ):
            subprocess.run(command, env=quiet, capture_output=True, check=False)
    finally:
        if forbidden:
            policy.unlink()


def _ports(count: int) -> list[int]:
    """Find ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_until(met: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it is not met in time.
    """
    until = time.monotonic() + seconds
    while not met():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


class Cluster:
    """The cluster; everything it writes lies in one folder, but two links in /etc/slurm.

    Args:
        cpus: CPUs of each node, whatever the machine has.
        gpus: GPUs of each node.
    """

    def __init__(self, cpus: int = 2, gpus: int = 2) -> None:
        self.cpus, self.gpus = cpus, gpus
        # munge wants a folder that everybody may enter and only root may write.
        self.folder = Path(tempfile.mkdtemp(prefix="iskd-slurm-"))
        self.folder.chmod(0o755)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        # The UTS namespace of each node.
        self.hosts: dict[str, Path] = {}
        self.ports = dict(zip(("ctl", "dbd", "db", *NODES), _ports(3 + len(NODES)), strict=True))

    # --- daemons ------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up."""
        for name in ("etc", "log", "state", "spool", "dev"):
            (self.folder / name).mkdir()
        for number in range(self.gpus):
            device = self.folder / "dev" / f"gpu{number}"
            os.mknod(device, 0o666 | 0o020000, os.stat("/dev/null").st_rdev)  # noqa: PTH116
        self._write_files()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = self.folder / "munge"
        munge.mkdir()
        self._spawn(
            "munged",
            ["munged", "--foreground", "--force", f"--key-file={key}"]
            + [f"--{name}-file={munge}/{name}" for name in ("pid", "log", "seed")]
            + [f"--socket={munge}/socket"],
        )
        wait_until((munge / "socket").exists, 20, "munged")
        self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self._idle() == len(NODES), 60, "idle nodes")

    def stop(self) -> None:
        """Take everything down, jobs first."""
        self.run("scancel", "--user=root", check=False)
        time.sleep(1)
        for name in reversed(self.running):
            self._end(name)
        for node in NODES:
            self._kill_all(node)
        for name in _FILES:
            (_ETC / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / "log" / name).open("ab") as out:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={
                    **os.environ,
                    "PATH": _PATH,
                    "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
                },
                start_new_session=True,
            )

    def _end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.running[name]
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_controller(self) -> None:
        """Start slurmctld, with the jobs it knew before."""
        self._spawn("slurmctld", ["slurmctld", "-D"])
        wait_until(lambda: " UP" in self.run("scontrol", "ping", check=False), 30, "slurmctld")

    def stop_controller(self) -> None:
        """End slurmctld: no client gets an answer any more."""
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, on a host of the node's name."""
        slurmd = f"hostname {node}; exec slurmd -D -N {node}"
        self._spawn(node, ["unshare", "--uts", "sh", "-c", slurmd])
        ours, theirs = (Path(f"/proc/{of}/ns/uts") for of in ("self", self.running[node].pid))
        wait_until(lambda: ours.readlink() != theirs.readlink(), 10, f"the host {node}")
        self.hosts[node] = theirs.readlink()

    def crash_node(self, node: str) -> None:
        """Kill everything that runs on a node, as when its power goes."""
        self._end(node, signal.SIGKILL)
        self._kill_all(node)

    def _kill_all(self, node: str) -> None:
        for process in self._processes(node):
            with suppress(psutil.Error):
                process.kill()

    def _processes(self, node: str) -> list[psutil.Process]:
        """List what runs on a node: all that share the host's name with its slurmd."""
        found = []
        for process in psutil.process_iter():
            try:
                here = Path(f"/proc/{process.pid}/ns/uts").readlink()
            except OSError:
                continue
            if here == self.hosts.get(node):
                found.append(process)
        return found

    def _start_accounting(self) -> None:
        data = self.folder / "db"
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            env={**os.environ, "PATH": _PATH},
            capture_output=True,
            check=True,
        )
        server = f"{self.folder}/db.socket"
        self._spawn(
            "mariadbd",
            [
                *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
                *(f"--socket={server}", "--bind-address=127.0.0.1", f"--port={self.ports['db']}"),
                *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
            ],
        )
        grant = (
            "create user slurm@localhost identified by 'slurm';"
            "grant all on slurm_acct_db.* to slurm@localhost;"
            "create user slurm@'127.0.0.1' identified by 'slurm';"
            "grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
        )
        sql = ("mariadb", "--no-defaults", f"--socket={server}", "--user=root", "-e")
        wait_until(lambda: self._succeeds(*sql, "select 1"), 60, "mariadbd")
        self.run(*sql, grant)
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        wait_until(lambda: self._succeeds("sacctmgr", "-n", "list", "cluster"), 60, "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "lab", check=False)
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, "Cluster=lab", check=False)
        self.run("sacctmgr", "-i", "add", "user", "root", f"Account={ACCOUNT}", check=False)

    # --- files --------------------------------------------------------------------------------

    def _write_files(self) -> None:
        etc, host = self.folder / "etc", socket.gethostname().split(".")[0]
        memory = psutil.virtual_memory().total // 2**20 * 4
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[node]} "
            f"CPUs={self.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} "
            f"ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{self.gpus} State=UNKNOWN"
            for node in NODES
        )
        everywhere = f"Nodes={','.join(NODES)} MaxTime=2-0 DefaultTime=60 State=UP"
        (etc / "slurm.conf").write_text(
            f"""\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.ports["ctl"]}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
ReturnToService=1
SlurmctldTimeout=30
SlurmdTimeout=20
MessageTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=300
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.ports["dbd"]}
AccountingStoragePass={self.folder}/munge/socket
AccountingStorageTRES=gres/gpu
{nodes}
PartitionName={PARTITION} {everywhere} Default=YES PriorityTier=1
PartitionName=urgent {everywhere} PriorityTier=10 PreemptMode=off
""",
            encoding="ascii",
        )
        (etc / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/dev/gpu[0-{self.gpus - 1}]\n",
            encoding="ascii",
        )
        database = etc / "slurmdbd.conf"
        database.write_text(
            f"""\
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
DbdHost=localhost
DbdPort={self.ports["dbd"]}
SlurmUser=root
PidFile={self.folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.ports["db"]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
""",
            encoding="ascii",
        )
        database.chmod(0o600)
        # Snakemake's job step drops SLURM_CONF, so the built-in place is the only one.
        _ETC.mkdir(exist_ok=True)
        for name in _FILES:
            (_ETC / name).unlink(missing_ok=True)
            (_ETC / name).symlink_to(etc / name)

    # --- clients ------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and give what it printed."""
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.folder / "etc/slurm.conf")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def _succeeds(self, *command: str) -> bool:
        try:
            self.run(*command)
        except RuntimeError:
            return False
        return True

    def _idle(self) -> int:
        nodes = self.run(
            "sinfo", "-h", "-N", "-p", PARTITION, "-t", "idle", "-o", "%N", check=False
        )
        return nodes.count("\n")

    def job(self, comment: str) -> str | None:
        """Find the running job whose comment, rule and wildcards, begins like this."""
        for line in self.run("squeue", "-h", "-t", "R", "-o", "%i|%k", check=False).splitlines():
            number, text = line.split("|", 1)
            if text.startswith(comment):
                return number
        return None

    def has_processes_of(self, job: str) -> bool:
        """Tell whether a job, or what watches over it, still runs on a node."""
        watcher = f"slurmstepd: [{job}."
        return any(
            " ".join(process.info["cmdline"] or []).startswith(watcher)
            for process in psutil.process_iter(["cmdline"])
        )

    def node_of(self, job: str) -> str:
        """Name the node a job runs on."""
        return self.run("squeue", "-h", "-j", job, "-o", "%N").strip()

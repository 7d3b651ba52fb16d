"""Shared by all parts: temporary files, processes that do not outlive the run, bounded waiting, and
the report."""

import asyncio
import contextlib
import ctypes
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
KEY = "the {} key of servers that exist only during a fault test"
# Cheap password hashes, because hashing is not under test. The login storm uses the default cost
# instead.
CHEAP_HASHES = {"ARGON2_MEMORY_KIB": "64", "ARGON2_PASSES": "1"}


class Missing(Exception):
    """A requirement that this machine lacks; the part is skipped."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def eventually(what, within, probe, pause=0.02):
    """Calls `probe` until it returns something true, and returns that; raises TimeoutError after
    `within` seconds."""
    until = time.monotonic() + within
    while True:
        found = probe()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > until:
            raise TimeoutError(f"not within {within} s: {what}")
        await asyncio.sleep(pause)


def compiled(rig, name):
    """Compiles a C file of this directory to a shared object."""
    if not shutil.which("cc"):
        raise Missing("a C compiler")
    made = rig.directory / f"{name}.so"
    if not made.exists():
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, HERE / f"{name}.c", "-ldl"]
        subprocess.run(command, check=True)
    return made


class Process:
    """A process that ends with the run, however the run ends."""

    def __init__(self, rig, command, log, env=None, cwd=None, user=None, limits=(), stdin=subprocess.DEVNULL):
        def before():
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for which, value in limits:
                resource.setrlimit(which, (value, value))

        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        with open(log, "ab") as out:
            self.popen = subprocess.Popen(
                [str(word) for word in command], env=env, cwd=cwd, stdin=stdin, stdout=out, stderr=out,
                preexec_fn=before, **as_user,
            )
        self.pid, self.farewell = self.popen.pid, None
        rig.processes.append(self)

    def signal(self, number):
        if self.popen.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def end(self):
        """Like `kill`, but with the signal the process needs to clean up, if any."""
        if self.farewell:
            # A stopped process does not handle signals.
            self.signal(signal.SIGCONT)
            self.signal(self.farewell)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(10)
        self.kill()

    async def ended(self, within=20):
        await eventually("the end of a process", within, lambda: self.popen.poll() is not None)
        return self.popen.returncode

    @property
    def runs(self):
        return self.popen.poll() is None

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self):
        """CPU seconds used so far."""
        return ticks(self.pid) / os.sysconf("SC_CLK_TCK")

    def files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self):
        """Number of open sockets, including listening ones; database connections do not count."""
        count = 0
        for file in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/{self.pid}/fd/{file}").startswith("socket:")
        return count


class Server:
    """A fasttrack server of this run."""

    def __init__(self, rig, name, database=None, **settings):
        self.rig, self.name = rig, name
        self.directory = rig.directory / name
        self.directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.log = self.directory / "log"
        self.file = self.directory / "fasttrack.db"
        self.limits, self.preload = (), None
        self.program = rig.program
        self.env = {
            "PATH": os.environ["PATH"],
            "LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "DATABASE_URL": database or f"sqlite://{self.file}",
            "SECRET_KEY": KEY.format("access"),
            "REFRESH_SECRET_KEY": KEY.format("refresh"),
            "ACCESS_TOKEN_EXPIRE_MINUTES": "1440",
            "RATE_LIMIT_ENABLED": "false",
            "WS_SOCKETS_PER_USER": "100000",
            "WS_SUBSCRIPTIONS_PER_USER": "100000",
            "RUST_LOG": "warn",
            **CHEAP_HASHES,
            **settings,
        }
        self.env = {name: value for name, value in self.env.items() if value is not None}
        self.process = None

    def spawn(self):
        env = {**self.env, **({"LD_PRELOAD": str(self.preload)} if self.preload else {})}
        self.process = Process(
            self.rig, [self.program], self.log, env=env, cwd=self.directory, limits=self.limits
        )

    async def start(self, within=30):
        self.spawn()
        await eventually(f"{self.name} is ready", within, self.is_ready)
        return self

    async def is_ready(self):
        if not self.process.runs:
            raise RuntimeError(f"{self.name} has ended: {self.tail()}")
        status, _ = await self.probe("/readyz")
        return status == 200

    async def probe(self, path, patience=5):
        """Sends one request on a new connection; status 0 without an answer."""

        def get():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=patience) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError:
                return 0, b""

        return await asyncio.to_thread(get)

    def kill(self):
        self.process.kill()

    async def stop(self, within=30):
        self.process.signal(signal.SIGTERM)
        return await self.process.ended(within)

    def tail(self, lines=5):
        with contextlib.suppress(OSError):
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "no log"

    def command(self, *words, check=True, program=None):
        done = subprocess.run(
            [program or self.program, *words], env=self.env, cwd=self.directory, capture_output=True, text=True,
            timeout=60,
        )
        if check and done.returncode:
            raise RuntimeError(f"fasttrack {' '.join(words)}: {done.stderr}")
        return done.stdout


class Rig:
    """One run: the program under test, its files, and the results."""

    def __init__(self, program, long, output, keep=False):
        self.program = pathlib.Path(program).resolve()
        self.long, self.output, self.keep = long, pathlib.Path(output), keep
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="fasttrack-faults-"))
        # PostgreSQL refuses to run as root, and its user needs access to the files.
        self.directory.chmod(0o755)
        self.processes, self.mounts, self.results = [], [], []
        self.failed = 0
        self.shared = {}

    def check(self, name, ok, **figures):
        """Reports a result: one line of output and one entry in the JSON."""
        self.failed += not ok
        self.results.append({"check": name, "ok": bool(ok), **figures})
        told = ", ".join(f"{key.replace('_', ' ')} {show(value)}" for key, value in figures.items())
        print(f"{'ok    ' if ok else 'FAILED'}  {name}{': ' if told else ''}{told}", flush=True)
        return ok

    def note(self, text):
        print(f"        {text}", flush=True)

    def skipped(self, name, why):
        self.results.append({"check": name, "ok": None, "why": str(why)})
        print(f"skipped {name}: needs {why}", flush=True)

    def write(self):
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "figures.json"
        path.write_text(json.dumps(self.results, indent=1) + "\n")
        return path

    def sweep(self, everything=False):
        """Ends the processes that a part has left running, for example when it failed."""
        for process in reversed(list(self.processes)):
            if everything or process not in self.kept():
                process.end()
                self.processes.remove(process)

    def kept(self):
        return [service.process for service in self.shared.values()]

    def end(self):
        self.sweep(everything=True)
        for mount in self.mounts:
            subprocess.run(["umount", "-l", str(mount)], check=False)
        if self.keep and self.failed:
            print(f"kept: {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


class Share:
    """The share of the machine that is available to the run, to discount the load of other
    processes."""

    def __init__(self, pids):
        self.pids = pids
        self.total, self.others = self.now()

    def now(self):
        with open("/proc/stat") as stat:
            spent = [int(field) for field in stat.readline().split()[1:9]]
        # Idle time and I/O wait belong to no process.
        return sum(spent), sum(spent) - spent[3] - spent[4] - sum(map(ticks, [*self.pids, os.getpid()]))

    def __call__(self):
        total, others = self.now()
        return 1 - min(1, max(0, (others - self.others) / max(1, total - self.total)))


def ticks(pid):
    """CPU clock ticks used by a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def show(value):
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if isinstance(value, dict):
        return " ".join(f"{key}={show(inner)}" for key, inner in value.items()) or "none"
    return str(value)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

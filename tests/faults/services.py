"""Dedicated PostgreSQL and Redis servers, which can be stopped and killed safely."""

import asyncio
import csv
import io
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess

from rig import Missing, Process, eventually, free_port


def postgres_programs():
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if found:
        return found[-1]
    here = shutil.which("postgres")
    if not here:
        raise Missing("PostgreSQL's programs")
    return pathlib.Path(here).parent


class Postgres:
    def __init__(self, rig):
        self.rig, self.programs = rig, postgres_programs()
        self.user = "postgres" if os.geteuid() == 0 else None
        self.directory = rig.directory / "postgres"
        self.data, self.port = self.directory / "data", free_port()
        self.process = None
        self.made = 0

    @classmethod
    async def start(cls, rig):
        """The run's PostgreSQL server, started on first use."""
        if "postgres" not in rig.shared:
            server = cls(rig)
            server.directory.mkdir()
            if server.user:
                shutil.chown(server.directory, server.user, server.user)
            as_user = {"user": server.user, "group": server.user, "extra_groups": []} if server.user else {}
            command = [server.programs / "initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "--locale=C.UTF-8"]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, cwd=server.directory, **as_user
            )
            if done.returncode:
                raise RuntimeError(f"initdb: {done.stderr}")
            rig.shared["postgres"] = server
        server = rig.shared["postgres"]
        if server.process is None or not server.process.runs:
            await server.up()
        return server

    def spawn(self, *settings):
        words = [word for setting in settings for word in ("-c", setting)]
        command = [self.programs / "postgres", "-D", self.data, "-p", self.port, "-k", self.directory]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100", *words]
        # The PostgreSQL user cannot write to the run's directory, so the log is opened here.
        self.process = Process(self.rig, command, self.rig.directory / "postgres.log", cwd=self.directory, user=self.user)
        # SIGKILL would leave its shared memory behind.
        self.process.farewell = signal.SIGQUIT

    async def up(self, *settings):
        self.spawn(*settings)
        await self.accepts()

    async def accepts(self, within=60):
        """Waits until PostgreSQL accepts connections; after a crash it replays its WAL first."""
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        await eventually(
            "PostgreSQL accepts connections", within, lambda: subprocess.run(ready, check=False).returncode == 0, pause=0.05
        )

    async def down(self, how=signal.SIGINT):
        """SIGINT requests a fast shutdown, SIGQUIT an immediate one, which resembles a crash."""
        self.process.signal(how)
        await self.process.ended(60)

    def url(self, database, user="postgres"):
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def psql(self, database="postgres"):
        return [str(self.programs / "psql"), "-X", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", database]

    def run(self, sql, database="postgres"):
        command = [*self.psql(database), "--csv", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr}")
        return [tuple(row) for row in csv.reader(io.StringIO(done.stdout))]

    def database(self, owner="postgres"):
        """A new, empty database."""
        self.made += 1
        name = f"faults_{self.made}"
        self.run(f"CREATE DATABASE {name} OWNER {owner}")
        return name

    def session(self, sql, database):
        """A session that runs `sql` and keeps its locks until it is killed."""
        process = Process(
            self.rig, self.psql(database), self.rig.directory / "psql.log", stdin=subprocess.PIPE
        )
        process.popen.stdin.write(sql.encode() + b"\n")
        process.popen.stdin.flush()
        return process

    def backends(self, *, stopped):
        """Stops or continues all server processes, like a machine that hangs or is unreachable."""
        pids = [self.process.pid]
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in pids + [int(child) for child in children]:
            try:
                os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)
            except ProcessLookupError:
                continue


class Proxy:
    """A TCP proxy that delays all data by `delay` seconds."""

    def __init__(self, port, delay):
        self.to, self.delay, self.tasks = port, delay, []

    async def up(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader, writer):
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.carry(reader, back), self.carry(there, writer))

    async def carry(self, reader, writer):
        loop = asyncio.get_running_loop()
        try:
            while said := await reader.read(65536):
                # Preserve order without waiting for data still in flight.
                loop.call_later(self.delay, writer.write, said)
        except OSError:
            pass
        loop.call_later(self.delay, writer.close)

    def end(self):
        self.server.close()


class Redis:
    def __init__(self, rig):
        if not shutil.which("redis-server"):
            raise Missing("redis-server")
        self.rig, self.port, self.process = rig, free_port(), None
        self.url = f"redis://127.0.0.1:{self.port}"

    async def up(self):
        command = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = Process(self.rig, command, self.rig.directory / "redis.log", cwd=self.rig.directory)

        async def answers():
            try:
                return await self.say("PING") == b"+PONG\r\n"
            except OSError:
                return False

        await eventually("Redis answers", 20, answers)
        return self

    async def say(self, *words):
        """Sends one command and returns the first line of the reply."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            told = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            writer.write(f"*{len(words)}\r\n{''.join(told)}".encode())
            return await reader.readline()
        finally:
            writer.close()


class Tables:
    """Reads the database directly, bypassing the server; the rows have the same form on SQLite and
    PostgreSQL."""

    def __init__(self, *, file=None, postgres=None, database=None):
        self.file, self.postgres, self.database = file, postgres, database

    def rows(self, columns, table, rest=""):
        if self.postgres:
            return self.postgres.run(f"SELECT {columns} FROM {table} {rest}", self.database)
        with sqlite3.connect(f"file:{self.file}?mode=ro", uri=True) as connection:
            found = connection.execute(f"SELECT {columns} FROM {table} {rest}").fetchall()
        connection.close()
        return [tuple(cell.hex() if isinstance(cell, bytes) else str(cell) for cell in row) for row in found]

    def tasks(self):
        return self.rows("id, title, status, version", "tasks")

    def comments(self):
        return self.rows("id, task_id, body", "comments")

    def events(self):
        return self.rows("kind, task_id, comment_id, data", "events", "WHERE kind < 100 ORDER BY xid, seq")

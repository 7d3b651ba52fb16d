"""Disk full: writes are refused with a code, reads continue, and service recovers when space is
freed."""

import asyncio
import contextlib
import os
import subprocess
import time

from client import Broken, Http, Person
from rig import Missing, Server, eventually
from services import Tables
from traffic import Load, told, verified

ROOM = 24 * 1024 * 1024
COMMENT = """mutation ($id: ID!, $b: String!) {
  addComment(input: { taskId: $id, body: $b }) { comment { id } userErrors { code } } }"""
READS = ["{ viewer { username } }", "{ tasks(first: 5) { nodes { title } } }", "{ events(last: 5) { nodes { id } } }"]


class Mailbox:
    """An SMTP server that accepts everything."""

    def __init__(self):
        self.letters = []

    async def up(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader, writer):
        writer.write(b"220 rig\r\n")
        to = ""
        while line := await reader.readline():
            word = line[:4].upper()
            if word == b"RCPT":
                to = line.decode()
            if word == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                self.letters.append(to)
            writer.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                break
        writer.close()

    def end(self):
        self.server.close()


async def run(rig):
    mailbox = await Mailbox().up()
    server = Server(rig, "disk", SMTP_URL=f"smtp://127.0.0.1:{mailbox.port}", RUST_LOG="info")
    mount(rig, server.directory, ROOM)
    logs = rig.directory / "disk-logs"
    logs.mkdir()
    mount(rig, logs, 8 << 20)
    server.log = logs / "log"
    await server.start()
    load = await Load.prepare(server.address, followers=5, writers=4, pause=0.02)
    await load.begin()
    await load.acknowledged(50)

    filler = server.directory / "filler"
    await asyncio.to_thread(fill, filler)
    refused = await full(rig, server, load)
    await asyncio.to_thread(os.unlink, filler)

    begun = time.monotonic()
    probe = load.owner.again()
    task = await eventually("a successful write", 30, lambda: made(probe, load.project), pause=0.1)
    took = time.monotonic() - begun
    ready = (await server.probe("/readyz"))[0]
    rig.check("disk: recovers when space is freed", took <= 5 and ready == 200 and bool(task), after_s=took)
    # The mail queue works again too.
    letters = len(mailbox.letters)
    await Person.sign_up(server.address, "after")
    await eventually("mail delivery", 30, lambda: any("after@" in to for to in mailbox.letters[letters:]), pause=0.1)
    await log_full(rig, server, load)
    await load.acknowledged(50)
    wrong, figures = await verified(load, Tables(file=server.file))
    wrong += await asyncio.to_thread(sound, server.file)
    told(rig, "disk: no write lost or partial", wrong, {**figures, "refused_disk_full": refused})
    ended = await server.stop()
    rig.check("disk: shuts down cleanly", ended == 0, code=ended)
    mailbox.end()


def mount(rig, directory, room):
    """Mounts a small file system."""
    if os.geteuid() != 0:
        raise Missing("root (to mount a small file system)")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"a small file system ({done.stderr.strip()})")
    rig.mounts.append(directory)


def fill(path):
    """Fills the file system completely."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096):
        try:
            while True:
                os.write(file, bytes(size))
        except OSError:
            continue
    os.close(file)


async def log_full(rig, server, load):
    """The disk of the log file is full: requests are not affected, and logging resumes when space
    is freed."""
    filler = server.log.with_name("filler")
    await asyncio.to_thread(fill, filler)
    answers, person, begun = [], load.owner.again(), time.monotonic()
    while time.monotonic() < begun + 2:
        for query in READS:
            try:
                answers.append((await person.ask(query)).status)
            except Broken:
                answers.append(0)
        answers.append((await server.probe("/readyz"))[0])
        answers.append(200 if await made(person, load.project) else 0)
        await asyncio.sleep(0.05)
    os.unlink(filler)
    size, failed = server.log.stat().st_size, sum(status != 200 for status in answers)
    rig.check("log's disk full: every request succeeds", not failed, asked=len(answers), failed=failed)
    with contextlib.suppress(Broken):
        await person.ask(READS[0])
    await asyncio.sleep(0.2)
    more = server.log.stat().st_size - size
    rig.check("log's disk full: logging resumes when space is freed", more > 0, bytes=more)


async def made(person, project):
    try:
        return await person.task(project, "room")
    except (RuntimeError, Broken):
        return None


async def full(rig, server, load):
    """While the disk is full: writes are refused clearly, and reads continue."""
    begun = time.monotonic()

    def refusals():
        return [request for request in load.ledger.since(begun) if request[3] not in (None, "NOT_FOUND")]

    # Writes that fit into the already allocated WAL still succeed.
    await eventually("refused writes", 30, lambda: len(refusals()) >= 5)
    since = time.monotonic()
    reads, register = [], []
    reader, anyone = load.owner.again(), Http(server.address)
    while time.monotonic() < since + (8 if rig.long else 3):
        for query in READS:
            asked = time.monotonic()
            answer = await reader.ask(query)
            reads.append((answer.status, time.monotonic() - asked))
        name = f"full{len(register)}"
        body = {"email": f"{name}@example.org", "username": name, "password": "Correct-Horse-7"}
        answer = await anyone.ask("POST", "/auth/register", body)
        register.append((answer.status, answer.code, answer.retry_after))
        await asyncio.sleep(0.05)
    told_so = [request for request in refusals() if request[0] >= since]
    codes = sorted({f"{status} {code}" for _, _, status, code, _ in told_so})
    clear = all(code == "SERVICE_UNAVAILABLE" for _, _, _, code, _ in told_so)
    slow = max((seconds for _, seconds, *_ in told_so), default=0.0)
    rig.check(
        "disk full: writes are refused with a clear code", clear and told_so and slow < 2.5, refused=len(told_so),
        codes={code: 1 for code in codes}, slowest_s=slow,
    )
    failed = [status for status, _ in reads if status != 200]
    slow = max(seconds for _, seconds in reads)
    rig.check("disk full: reads continue", not failed and slow < 1, reads=len(reads), failed=len(failed), slowest_s=slow)
    clear = all(status == 503 and code == "SERVICE_UNAVAILABLE" and retry for status, code, retry in register)
    answers = {f"{status} {code}": 1 for status, code, _ in register}
    rig.check("disk full: sign-up is refused with Retry-After", clear, tried=len(register), answers=answers)
    live, ready = (await server.probe("/livez"))[0], (await server.probe("/readyz"))[0]
    rig.check("disk full: the server stays up", live == 200 and server.process.runs, livez=live, readyz=ready)
    return len(told_so)


def sound(file):
    import sqlite3

    connection = sqlite3.connect(file)
    try:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    finally:
        connection.close()
    return [] if found == [("ok",)] else [str(found)]

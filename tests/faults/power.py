"""Power loss on SQLite: reconstructs possible disk images at arbitrary moments from a trace of
writes and syncs.

Everything written to a file before its last sync began is on the disk; of later writes, any subset
of their 512-byte sectors may be. The control replays the same trace as if commits did not wait for
their sync, as with `synchronous = NORMAL`: unless the control loses acknowledged writes, the test
could not detect a loss.
"""

import asyncio
import random
import re
import shutil
import sqlite3
import struct

from rig import Server, compiled
from services import Tables
from traffic import Ledger, Load, contradictions

SECTOR = 512
RECORD = struct.Struct("<cBHIQ")
MARK = re.compile(rb'"(?:title|body)":"(\d+-\d+)"')
WAL_HEADER = 32


async def run(rig):
    server = Server(rig, "power")
    trace = rig.directory / "trace"
    # Create the tables before tracing starts.
    await server.start()
    await server.stop()
    before = {str(server.file): server.file.read_bytes()}
    server.preload, server.env["TRACE"] = compiled(rig, "trace"), str(trace)
    await server.start()
    load = await Load.prepare(server.address, writers=8)
    await load.begin()
    await load.acknowledged(1200 if rig.long else 500, within=180)
    server.kill()
    await load.caught_up([])
    count = 400 if rig.long else 200
    records = list(read(trace))
    found = await asyncio.to_thread(replay, rig, before, records, count)
    for name, fate in found.items():
        for line in fate.wrong[:3] if name == "FULL" else []:
            rig.note(line)
        figures = {
            "images": fate.images, "corrupt": fate.corrupt, "images_with_loss": fate.losing, "rows_lost": fate.lost,
            "contradictory": fate.contradictory, "acknowledged": fate.acknowledged,
        }
        if name == "FULL":
            ok = not (fate.corrupt or fate.lost or fate.contradictory)
            rig.check("power loss", ok, **figures, syncs=sum(kind == b"Y" for kind, *_ in records), trace_records=len(records))
        else:
            ok = fate.losing > 0 and not fate.corrupt
            rig.check("power loss, control with synchronous=NORMAL: loses writes", ok, **figures)
    await starts(rig)


def read(path):
    """The records of a trace: (kind, file, thread, offset, payload)."""
    with open(path, "rb") as trace:
        while len(head := trace.read(RECORD.size)) == RECORD.size:
            kind, file, thread, length, offset = RECORD.unpack(head)
            payload = trace.read(length)
            if len(payload) == length:
                yield kind, file, thread, offset, payload


class File:
    """The part of a file that is certainly on the disk, and the part that may be."""

    def __init__(self, content):
        self.durable, self.open = bytearray(content), []
        # Number of operations on the disk, and the number at the start of each thread's sync.
        self.done, self.covered = 0, {}

    def does(self, kind, thread, offset, payload):
        if kind == b"S":
            self.covered[thread] = self.done + len(self.open)
        elif kind == b"Y":
            # Concurrent syncs: each covers the writes before its own start.
            reached = max(self.covered.pop(thread) - self.done, 0)
            for operation in self.open[:reached]:
                apply(self.durable, *operation)
            del self.open[:reached]
            self.done += reached
        else:
            self.open.append((kind, offset, payload))

    def after_a_cut(self, chance):
        """One possible content after the power loss."""
        image, share = bytearray(self.durable), chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        torn = chance.random() < 0.5
        for kind, offset, payload in self.open:
            if kind == b"T" or not torn:
                if chance.random() < share:
                    apply(image, kind, offset, payload)
                continue
            for start in range(0, len(payload), SECTOR):
                if chance.random() < share:
                    apply(image, kind, offset + start, payload[start:start + SECTOR])
        return image


def apply(image, kind, offset, payload):
    if kind == b"T":
        del image[offset:]
        image.extend(bytes(offset - len(image)))
        return
    if len(image) < offset + len(payload):
        image.extend(bytes(offset + len(payload) - len(image)))
    image[offset:offset + len(payload)] = payload


def waits(records):
    """Record indices of the syncs that `synchronous = NORMAL` also waits for: all of the database
    file, and those of the WAL before a checkpoint and after its header. The writes of the same
    thread before and after a sync show its purpose, because checkpoints run concurrently with
    commits."""
    names = {file: payload for kind, file, _, _, payload in records if kind == b"N"}
    logs = {file for file, name in names.items() if name.endswith(b"-wal")}
    kept, following, header = set(), {}, {}
    for index in range(len(records) - 1, -1, -1):
        kind, file, thread, *_ = records[index]
        if kind == b"W":
            following[thread] = file
        elif kind in (b"S", b"Y") and (file not in logs or following.get(thread, file) not in logs):
            kept.add(index)
    for index, (kind, file, thread, offset, payload) in enumerate(records):
        if kind == b"W":
            header[thread] = file in logs and offset == 0 and len(payload) == WAL_HEADER
        elif kind in (b"S", b"Y") and header.get(thread):
            kept.add(index)
    return kept


class Fate:
    def __init__(self):
        self.images = self.corrupt = self.losing = self.lost = self.contradictory = self.acknowledged = 0
        self.wrong = []

    def look(self, path, acknowledged):
        self.images += 1
        self.acknowledged = len(acknowledged)
        try:
            connection = sqlite3.connect(path)
            sound = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            sound = sound and not connection.execute("PRAGMA foreign_key_check").fetchall()
            connection.close()
        except sqlite3.DatabaseError as error:
            self.wrong.append(str(error))
            sound = False
        if not sound:
            self.corrupt += 1
            return
        found = contradictions(Ledger(acknowledged=acknowledged), Tables(file=path))
        lost = [line for line in found if line.endswith("was acknowledged but is missing")]
        self.lost += len(lost)
        self.losing += bool(lost)
        self.contradictory += len(found) > len(lost)
        self.wrong += found


def replay(rig, before, records, count):
    """Simulates power loss at random moments, with both sync modes."""
    chance = random.Random(2)
    names = {file: payload.decode() for kind, file, _, _, payload in records if kind == b"N"}
    first = next(index for index, (kind, *_, payload) in enumerate(records) if kind == b"A" and MARK.search(payload))
    moments = set(chance.sample(range(first + 1, len(records)), count))
    normal = waits(records)
    worlds = {
        world: {file: File(before.get(name, b"")) for file, name in names.items()} for world in ("FULL", "NORMAL")
    }
    fates = {name: Fate() for name in worlds}
    acknowledged = set()
    for place in ("images", "kept"):
        (rig.directory / place).mkdir()
    for index, (kind, file, thread, offset, payload) in enumerate(records):
        if index in moments:
            for name, files in worlds.items():
                base = rig.directory / "images" / f"{name}-{index}.db"
                for number, state in files.items():
                    end = names[number].rpartition(".db")[2]
                    image = state.after_a_cut(chance)
                    if image:
                        base.with_name(base.name + end).write_bytes(image)
                if name == "FULL" and len(acknowledged) % 7 == 0:
                    # Copy it first: opening it checkpoints the WAL.
                    for part in base.parent.glob(base.name + "*"):
                        shutil.copy(part, rig.directory / "kept")
                fates[name].look(base, set(acknowledged))
                base.unlink(missing_ok=True)
        if kind == b"A":
            if b'"userErrors":[]' in payload:
                acknowledged |= {mark.decode() for mark in MARK.findall(payload)}
        elif kind != b"N":
            for name, files in worlds.items():
                if name == "FULL" or kind in (b"W", b"T") or index in normal:
                    files[file].does(kind, thread, offset, payload)
    return fates


async def starts(rig):
    """The server itself starts on such an image, too."""
    images = sorted((rig.directory / "kept").glob("FULL-*.db"))[::3][:5]
    started = 0
    for number, image in enumerate(images):
        server = Server(rig, f"power-{number}", f"sqlite://{image}")
        await server.start()
        started += 1
        await server.stop()
    rig.check("the server starts after a power loss", started == len(images) and started > 0, servers=started)

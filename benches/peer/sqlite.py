#!/usr/bin/env python3
"""The limit of SQLite: executes the writes of a task update in a loop without a server.

    benches/peer/sqlite.py FILE [--group 16] [--updates 20000]

FILE is a database filled by `run.py --sqlite`; its tasks are changed. As in the server, a group of updates shares one
durable commit, and checkpoints run concurrently. Everything else is left out: reading the task, delivering events, and
updating inboxes.
"""
import argparse
import random
import sqlite3
import threading
import time
import uuid

import content

UPDATE = "UPDATE tasks SET status = ?, version = ?, updated_at = ? WHERE id = ? AND version = ?"
EVENT = """INSERT INTO events (id, kind, occurred_at, actor_id, owner_id, project_id, task_id, assignee_id, data)
    VALUES (?, 6, ?, ?, ?, ?, ?, ?, ?)"""
FOLDED = 400


def opened(file):
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -16000",
                    "temp_store = MEMORY", "wal_autocheckpoint = 16000"):
        db.execute(f"PRAGMA {setting}").fetchall()
    return db


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("file")
    arguments.add_argument("--group", type=int, default=16)
    arguments.add_argument("--updates", type=int, default=20_000)
    options = arguments.parse_args()
    writer, folder = opened(options.file), opened(options.file)
    numbers = random.sample(range(1, content.SIZES["1M"][2] + 1), options.updates)
    tasks = [writer.execute("SELECT id, version, status, owner_id, project_id, assignee_id, title FROM tasks WHERE id = ?",
                            (content.key("task", number).bytes,)).fetchone() for number in numbers]
    due, ended, turn = threading.Semaphore(0), threading.Event(), threading.Lock()

    def fold():
        while due.acquire() and not ended.is_set():
            for _ in range(2):
                folder.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with turn:
                folder.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    folding = threading.Thread(target=fold)
    folding.start()
    began, before, unfolded = time.monotonic(), time.process_time(), 0
    for first in range(0, len(tasks), options.group):
        group = tasks[first:first + options.group]
        with turn:
            writer.execute("BEGIN IMMEDIATE")
            for key, version, status, owner, project, assignee, title in group:
                now = time.time_ns() // 1000
                writer.execute("SAVEPOINT member")
                writer.execute(UPDATE, ((status + 1) % 3, version + 1, now, key, version))
                told = f'{{"title":"{title}","status":[{status},{(status + 1) % 3}]}}'
                writer.execute(EVENT, (uuid.uuid4().bytes, now, owner, owner, project, key, assignee, told))
                writer.execute("RELEASE member")
            writer.execute("COMMIT")
        unfolded += len(group)
        if unfolded >= FOLDED:
            unfolded = 0
            due.release()
    took, used = time.monotonic() - began, time.process_time() - before
    ended.set()
    due.release()
    folding.join()
    print(f"{len(tasks) / took:,.0f} updates/s, {used / len(tasks) * 1e6:.0f} µs of CPU each")


main()

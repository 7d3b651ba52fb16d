"""Rolling upgrade with a migration under load, and three instances that start on an empty database
at once.

The new version is a copy of the program in which the bytes of one embedded migration are replaced
by a new one. It adds a column and an index and sleeps for a second while it holds its locks.
"""

import asyncio
import itertools
import time

from client import Broken
from rig import HERE, Server
from services import Postgres, Redis, Tables
from traffic import Load, told, verified

MIGRATIONS = HERE.parents[1] / "migrations" / "postgres"
NEW = """ALTER TABLE tasks ADD COLUMN faults_note text;
CREATE INDEX faults_occurred ON events (occurred_at);
SELECT pg_sleep(1);
"""
TRIES = 6


async def run(rig):
    postgres = await Postgres.start(rig)
    await at_once(rig, postgres)
    await rolling(rig, postgres)


def cluster(rig, name, url, redis=None):
    settings = {"REDIS_URL": redis.url if redis else None, "RUST_LOG": "info"}
    return [Server(rig, f"{name}-{number}", url, **settings) for number in range(3)]


async def at_once(rig, postgres):
    """Three instances start on an empty database at the same moment."""
    times = 5 if rig.long else 2
    slowest, wrong = 0.0, 0
    migrations = len(list(MIGRATIONS.iterdir()))
    for turn in range(times):
        database = postgres.database()
        nodes = cluster(rig, f"empty-{turn}", postgres.url(database))
        begun = time.monotonic()
        await asyncio.gather(*(node.start() for node in nodes))
        slowest = max(slowest, time.monotonic() - begun)
        applied = postgres.run("SELECT version FROM __diesel_schema_migrations", database)
        wrong += len(applied) != migrations
        for node in nodes:
            node.kill()
    rig.check("three instances on an empty database: one migrates, all start", not wrong, times=times, slowest_s=slowest)


def successor(rig):
    """Builds the new version; see the module documentation."""
    program = rig.program.read_bytes()
    for migration in sorted(MIGRATIONS.iterdir(), reverse=True):
        name, old = migration.name.encode(), (migration / "up.sql").read_bytes()
        if len(NEW) <= len(old) and program.count(old) == 1 and name in program:
            break
    else:
        raise RuntimeError("no embedded migration is contiguous and long enough")
    made = rig.directory / "successor"
    made.write_bytes(program.replace(old, NEW.encode().ljust(len(old))).replace(name, b"2099" + name[4:]))
    made.chmod(0o755)
    return made


class Patient:
    """A client that retries as documented: after a refusal or disconnect it tries the next node."""

    def __init__(self, load, nodes):
        self.load, self.nodes = load, nodes
        self.asked = self.retried = self.failed = self.most = 0
        self.slowest = 0.0
        self.failures = {}

    async def run(self, number):
        turn, node = itertools.count(number), itertools.count(number)
        here = self.nodes[next(node) % 3]
        person = self.load.owner.again(lambda: here.address)
        task = await person.task(self.load.project, f"patient {number}")
        read = "{ tasks(first: 3) { nodes { title status } } }"
        write = "mutation ($id: ID!, $b: String!) { addComment(input: { taskId: $id, body: $b }) { comment { id } } }"
        while not self.load.stopping:
            count = next(turn)
            query, variables = (write, {"id": task, "b": f"patient {number} {count}"}) if count % 3 == 0 else (read, {})
            begun, last = time.monotonic(), None
            for attempt in range(TRIES):
                try:
                    answer = await person.ask(query, variables)
                    if answer.status == 200:
                        break
                    last = f"{answer.status} {answer.code}"
                except Broken as broken:
                    last = str(broken)
                person.http.close()
                here = self.nodes[next(node) % 3]
                await asyncio.sleep(0.1 * 2**attempt)
            else:
                self.failed += 1
            if last:
                self.failures[last] = self.failures.get(last, 0) + 1
            self.asked += 1
            self.retried += attempt > 0
            self.most = max(self.most, attempt)
            self.slowest = max(self.slowest, time.monotonic() - begun)
            await asyncio.sleep(0.005)


async def rolling(rig, postgres):
    """Restarts the nodes one by one with the new version; the first one runs the migration."""
    redis = await Redis(rig).up()
    database = postgres.database()
    nodes = cluster(rig, "rolling", postgres.url(database), redis)
    for node in nodes:
        node.env["DRAIN_SECONDS"] = "1"
    await asyncio.gather(*(node.start() for node in nodes))
    turn = itertools.count()

    def where():
        return nodes[next(turn) % 3].address

    load = await Load.prepare(where, followers=30, writers=4)
    await load.begin()
    patient = Patient(load, nodes)
    load.tasks += [asyncio.create_task(patient.run(number)) for number in range(3)]
    await load.acknowledged(100)
    program, codes, took = successor(rig), [], []
    for node in nodes:
        begun = time.monotonic()
        codes.append(await node.stop())
        node.program = program
        await node.start()
        took.append(time.monotonic() - begun)
        await load.acknowledged(50)
    migrated = postgres.run("SELECT count(*) FROM information_schema.columns WHERE column_name = 'faults_note'", database)
    wrong, figures = await verified(load, Tables(postgres=postgres, database=database))
    rig.check(
        "rolling restart: every node stops cleanly and returns migrated", codes == [0, 0, 0] and migrated == [("1",)],
        exit_codes=codes, longest_node_s=max(took),
    )
    for last, count in patient.failures.items():
        rig.note(f"{count} retried after: {last}")
    rig.check(
        "rolling restart: no request fails beyond a retry", not patient.failed and patient.asked > 50, requests=patient.asked,
        asked_again=patient.retried, failed=patient.failed, most_retries=patient.most, slowest_s=patient.slowest,
    )
    told(rig, "rolling restart: no event lost, no partial write", wrong, {**figures, "outcomes": load.ledger.outcomes()})
    for node in nodes:
        node.kill()
    redis.process.kill()

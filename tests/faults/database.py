"""PostgreSQL outages: requests fail fast with a clear error, service recovers at once, and no write
is lost or partial."""

import asyncio
import itertools
import signal
import time

from client import Broken, Http
from rig import Server, eventually
from services import Postgres, Proxy, Tables
from traffic import Load, told, verified

# How long a refusal may take, in seconds, and the margin for a loaded machine.
PROMPT = 2.0
GRACE = 0.5
TENANT = "tenant"
NUMBERS = itertools.count()
VIEWER = "{ viewer { username } }"
TASKS = "{ tasks(first: 5) { nodes { title } } }"
RENAME = 'mutation { updateViewer(input: { displayName: "Ada" }) { userErrors { code } } }'


async def run(rig):
    postgres = await Postgres.start(rig)
    # Not a superuser: its reserved connections would hide the exhaustion.
    postgres.run(f"CREATE ROLE {TENANT} LOGIN")
    database = postgres.database(TENANT)
    server = await Server(rig, "database", postgres.url(database, TENANT)).start()
    load = await Load.prepare(server.address, followers=10, writers=4)
    await load.begin()
    await load.acknowledged(50)
    outage = Outage(rig, server, load)
    spell = 6 if rig.long else 2

    async def stop(how):
        await postgres.down(how)

    await outage.through("PostgreSQL stopped", lambda: stop(signal.SIGINT), postgres.up, spell)
    await outage.through("PostgreSQL crashed", lambda: stop(signal.SIGQUIT), postgres.up, spell)
    await cut(rig, postgres, load, outage)
    await outage.through("PostgreSQL hangs", *hanging(postgres), spell)
    await locked(rig, postgres, database, outage, spell)
    await slow(rig, postgres, database)
    await outage.through("PostgreSQL out of connections", *full(postgres, 0), spell)
    await outage.through("PostgreSQL with three connections", *full(postgres, 3), spell, tells=False)

    await load.acknowledged(50)
    wrong, figures = await verified(load, Tables(postgres=postgres, database=database))
    told(rig, "PostgreSQL, seven kinds of outage: no write lost or partial", wrong, figures)
    server.kill()


class Outage:
    def __init__(self, rig, server, load):
        self.rig, self.server, self.load = rig, server, load

    async def through(self, name, begin, end, spell, reads=(VIEWER, TASKS), tells=True):
        """Injects a fault under load, judges the answers, removes the fault and measures the
        recovery."""
        await begin()
        began = time.monotonic()
        watching = asyncio.create_task(self.unready())
        asked = await self.asked(began + spell, reads)
        live, _ = await self.server.probe("/livez")
        unready = await watching if tells else watching.cancel()
        begun = time.monotonic()
        await end()
        took = await self.back()
        # Requests that started during the outage may be answered after it.
        during = [request for request in self.load.ledger.requests if began <= request[0] < begun - 0.05]
        self.judge(f"{name}: requests fail fast with a clear error", asked + during, live)
        if tells:
            self.rig.check(f"{name}: /readyz reports it", unready is not None and unready <= 2 * PROMPT, after_s=unready or -1)
        self.rig.check(f"{name}: recovers", took <= PROMPT + GRACE, after_s=took)

    async def asked(self, until, reads):
        """Sends several operations repeatedly, each on its own connection, and returns the
        outcomes."""

        async def again(call):
            found = []
            while time.monotonic() < until:
                begun = time.monotonic()
                try:
                    answer = await call()
                    found.append((begun, time.monotonic() - begun, answer.status, answer.code, answer.retry_after))
                except Broken as broken:
                    found.append((begun, time.monotonic() - begun, 0, str(broken), None))
                await asyncio.sleep(0.1)
            return found

        def person():
            return self.load.owner.again(self.server.address)

        calls = [lambda query=query, who=person(): who.ask(query) for query in (*reads, RENAME)]
        anyone = Http(self.server.address)
        # A different unknown name each time: repeated wrong passwords for one would lock it.
        calls.append(lambda: anyone.ask("POST", "/auth/login", {"username": f"nobody{next(NUMBERS)}", "password": "wrong"}))
        found = await asyncio.gather(*map(again, calls))
        return [request for requests in found for request in requests]

    async def unready(self):
        """Seconds until /readyz returns 503; None if it does not."""
        begun = time.monotonic()
        try:
            await eventually("/readyz returns 503", 8, lambda: self.says(503), pause=0.05)
            return time.monotonic() - begun
        except TimeoutError:
            return None

    async def says(self, status):
        return (await self.server.probe("/readyz"))[0] == status

    async def back(self):
        """Seconds until readiness, reads and writes all succeed again."""
        begun = time.monotonic()
        probe = self.load.owner.again(self.server.address)

        async def served():
            try:
                answers = [await probe.ask(query) for query in (VIEWER, TASKS, RENAME)]
            except Broken:
                return False
            return all(answer.status == 200 for answer in answers) and await self.says(200)

        await eventually("full service", 60, served)
        return time.monotonic() - begun

    def judge(self, name, requests, live):
        """Every request must be served, or refused promptly with a code and Retry-After."""
        served = [request for request in requests if request[2] == 200 and request[3] is None]
        # INVALID_CREDENTIALS is a regular answer: the login was evaluated.
        judged = [request for request in requests if request[3] == "INVALID_CREDENTIALS" or request in served]
        refused = [request for request in requests if request[3] == "SERVICE_UNAVAILABLE"]
        clear = [request for request in refused if request[2] != 503 or request[4]]
        executed = sum(request[2] != 503 for request in refused)
        other = [request for request in requests if request not in judged and request not in refused]
        slowest = max((request[1] for request in requests), default=0.0)
        ok = not other and len(clear) == len(refused) and slowest <= PROMPT + GRACE and live == 200
        figures = {"served": len(judged), "refused": len(refused), "refused_after_beginning": executed}
        if other:
            figures["others"] = {f"{status} {code}": 0 for _, _, status, code, _ in other}
            for _, _, status, code, _ in other:
                figures["others"][f"{status} {code}"] += 1
        self.rig.check(name, ok, **figures, slowest_s=slowest, livez=live)


async def cut(rig, postgres, load, outage):
    """PostgreSQL terminates all connections while statements run on them."""
    begun = time.monotonic()
    ended = 0
    for _ in range(10 if rig.long else 5):
        ended += len(postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{TENANT}'"))
        await load.acknowledged(10)
    took = await outage.back()
    during = load.ledger.since(begun)
    live, _ = await outage.server.probe("/livez")
    outage.judge("connections cut: requests fail fast with a clear error", during, live)
    rig.check("connections cut: recovers", took <= PROMPT, connections=ended, after_s=took)


def hanging(postgres):
    async def stop():
        postgres.backends(stopped=True)

    async def go_on():
        postgres.backends(stopped=False)

    return stop, go_on


async def locked(rig, postgres, database, outage, spell):
    """Another session locks the tasks table: statements that wait for it exhaust the pool."""
    held = []

    async def lock():
        held.append(postgres.session("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(60);", database))
        granted = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'tasks'::regclass"
        await eventually("the lock", 10, lambda: postgres.run(granted, database))

    async def unlock():
        held.pop().kill()
        # A sleeping backend does not notice that its client is gone: terminate it.
        held_by = "query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
        postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {held_by}")

    # Readiness is not checked here: the database answers, and a probe may or may not get a
    # connection.
    await lock()
    began = time.monotonic()
    crowd = [outage.load.owner.again(outage.server.address) for _ in range(20)]

    async def crowded(person):
        found = []
        while time.monotonic() < began + spell:
            begun = time.monotonic()
            try:
                answer = await person.ask(TASKS)
                found.append((begun, time.monotonic() - begun, answer.status, answer.code, answer.retry_after))
            except Broken as broken:
                found.append((begun, time.monotonic() - begun, 0, str(broken), None))
            await asyncio.sleep(0.05)
        return found

    found = await asyncio.gather(*map(crowded, crowd), outage.asked(began + spell, (VIEWER,)))
    live, _ = await outage.server.probe("/livez")
    begun = time.monotonic()
    await unlock()
    took = await outage.back()
    requests = [request for requests in found for request in requests]
    during = [request for request in outage.load.ledger.requests if began <= request[0] < begun]
    outage.judge("pool exhausted by a lock: requests fail fast with a clear error", requests + during, live)
    rig.check("pool exhausted by a lock: recovers", took <= PROMPT + GRACE, after_s=took)


async def slow(rig, postgres, database):
    """High latency to PostgreSQL: everything is slower, and nothing fails."""
    proxy = await Proxy(postgres.port, 0.025).up()
    far = postgres.url(database, TENANT).replace(str(postgres.port), str(proxy.port))
    server = await Server(rig, "database-far", far).start()
    load = await Load.prepare(server.address, name="far", writers=4)
    await load.begin()
    reader, times = load.owner.again(), []
    while len(load.ledger.acknowledged) < 40:
        begun = time.monotonic()
        answers = [(await reader.ask(query)).status for query in (VIEWER, TASKS)]
        times.append(time.monotonic() - begun if answers == [200, 200] else 99)
    ready, _ = await server.probe("/readyz")
    await load.quiet()
    await load.caught_up([])
    outcomes, slowest = load.ledger.outcomes(), max(request[1] for request in load.ledger.requests)
    ok = set(outcomes) == {"200"} and max(times) < 4 and slowest < 4 and ready == 200
    rig.check(
        "PostgreSQL 50 ms away: every request succeeds", ok, outcomes=outcomes, slowest_write_s=slowest,
        slowest_two_reads_s=max(times), readyz=ready,
    )
    server.kill()
    proxy.end()


def full(postgres, most):
    """Limits the role to `most` connections and terminates the existing ones."""

    async def fill():
        postgres.run(f"ALTER ROLE {TENANT} CONNECTION LIMIT {most}")
        postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{TENANT}'")

    async def room():
        postgres.run(f"ALTER ROLE {TENANT} CONNECTION LIMIT -1")

    return fill, room

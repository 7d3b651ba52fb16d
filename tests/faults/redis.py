"""Redis outages: each instance counts rate limits on its own, events arrive by polling, and nothing
else changes."""

import asyncio
import signal
import time

from client import Person, Socket
from rig import Server, eventually, quantile
from services import Postgres, Redis, Tables
from traffic import EVENTS, Load, told, verified

LIMIT = 60
# Upper bound in seconds without hints: the log is polled twice a second.
POLLED = 1.5
# Upper bound in seconds with hints.
HINTED = 0.2


async def run(rig):
    postgres, redis = await Postgres.start(rig), await Redis(rig).up()
    database = postgres.database()
    settings = {
        "REDIS_URL": redis.url, "RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_GRAPHQL_PER_MINUTE": "1000000",
        "RATE_LIMIT_COST_PER_MINUTE": "10000000", "RATE_LIMIT_CREDENTIALS_PER_MINUTE": "1000000",
    }
    servers = [await Server(rig, f"redis-{n}", postgres.url(database), **settings).start() for n in range(2)]
    # One instance writes, the other delivers: it learns about foreign events from hints or by
    # polling.
    load = await Load.prepare(servers[0].address, followers=10, writers=4, pause=0.02)
    for follower in load.followers:
        follower.where = lambda: servers[1].address
    await load.begin()
    watch = Watch(rig, servers, load)
    spell = 8 if rig.long else 2
    await watch.spell("Redis available", spell, HINTED, share=0.5)
    await limits(rig, postgres, redis)

    redis.process.kill()
    await watch.spell("Redis killed", spell, POLLED, redis="away")
    late = await Server(rig, "redis-late", postgres.url(database), **settings).start()
    rig.check("a server starts while Redis is away", await late.is_ready())
    late.kill()
    await redis.up()
    await watch.spell("Redis restarted", spell, POLLED)

    redis.process.signal(signal.SIGSTOP)
    await watch.spell("Redis paused", spell, POLLED, redis="away")
    redis.process.signal(signal.SIGCONT)
    await watch.spell("Redis resumed", spell, POLLED)

    await redis.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await redis.say("CONFIG", "SET", "maxmemory", "1mb")
    await redis.say("SET", "filler", "x" * (1 << 20))
    await watch.spell("Redis full", spell, POLLED)
    await redis.say("CONFIG", "SET", "maxmemory", "0")

    wrong, figures = await verified(load, Tables(postgres=postgres, database=database))
    told(rig, "Redis, three kinds of outage: nothing lost", wrong, figures)
    for server in servers:
        server.kill()


class Watch:
    def __init__(self, rig, servers, load):
        self.rig, self.servers, self.load = rig, servers, load

    async def spell(self, name, seconds, late, redis="ok", share=1):
        """Under load for `seconds`: every request succeeds, and the given share of events reaches
        the other instance's subscribers within `late` seconds."""
        begun = time.monotonic()
        delays = []
        listener = await Socket.open(self.servers[1].address, self.load.owner.token)
        listener.subscribe(EVENTS.replace("id cursor", "id cursor ... on ProjectUpdatedEvent { project { name } }"))
        rename = "mutation ($id: ID!, $n: String!) { updateProject(input: { id: $id, name: $n }) { project { id } } }"
        writer = self.load.owner.again(self.servers[0].address)
        await asyncio.sleep(0.2)
        number = 0
        while time.monotonic() < begun + seconds:
            number += 1
            mark = f"{name} {number}"
            async with asyncio.timeout(10):
                while (answer := await writer.ask(rename, {"id": self.load.project, "n": mark})).status == 503:
                    pass
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {answer.body[:300]}")
                written = time.monotonic()
                while (await listener.receive())["payload"]["data"]["events"].get("project", {}).get("name") != mark:
                    pass
            delays.append(time.monotonic() - written)
            await asyncio.sleep(0.1)
        listener.close()
        says = f'"redis":"{redis}"'.encode()

        async def knows():
            status, body = await self.servers[0].probe("/readyz")
            return status == 200 and says in body

        try:
            await eventually("/readyz reports Redis", 10, knows, pause=0.2)
            ready = True
        except TimeoutError:
            ready = False
        requests = self.load.ledger.since(begun)
        # On a machine that stalls for a second, each writer may be refused once for lack of a
        # connection.
        stalled = [request for request in requests if request[2] == 503]
        failed = [request for request in requests if request[2] not in (200, 503)]
        slowest = max(request[1] for request in requests)
        ok = not failed and len(stalled) <= len(self.load.writers) and quantile(delays, share) <= late and ready
        self.rig.check(
            name, ok, requests=len(requests), failed=len(failed), told_to_come_back=len(stalled), slowest_s=slowest,
            slowest_event_s=max(delays), median_event_s=quantile(delays, 0.5),
            readyz_says=redis if ready else "something else",
        )


async def limits(rig, postgres, redis):
    """Two instances share one limit through Redis; without Redis each applies the limit on its
    own."""
    database = postgres.database()
    settings = {
        "REDIS_URL": redis.url, "RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_GRAPHQL_PER_MINUTE": str(LIMIT),
        "RATE_LIMIT_CREDENTIALS_PER_MINUTE": "1000000",
    }
    pair = [await Server(rig, f"limits-{n}", postgres.url(database), **settings).start() for n in range(2)]

    async def allowed(name):
        """Sends requests to both instances alternately; returns the number served, and whether the
        refusals are clear."""
        person = await Person.sign_up(pair[0].address, name)
        there = person.again(pair[1].address)
        answers = [await (person, there)[n % 2].ask("{ __typename }") for n in range(3 * LIMIT)]
        refused = [answer for answer in answers if answer.status != 200]
        clear = all(answer.status == 429 and int(answer.retry_after) >= 1 for answer in refused)
        return sum(answer.status == 200 for answer in answers), clear

    # A new window may start in the middle, which admits slightly more. After one slow answer from
    # Redis an instance counts on its own for a second; in that case repeat with another user.
    shared, clear = await allowed("bob")
    if shared > LIMIT * 1.3:
        await asyncio.sleep(1)
        shared, clear = await allowed("dora")
    rig.check("two instances share a rate limit", LIMIT <= shared <= LIMIT * 1.3 and clear, limit=LIMIT, served=shared)
    redis.process.signal(signal.SIGSTOP)
    alone, clear = await allowed("carol")
    redis.process.signal(signal.SIGCONT)
    rig.check(
        "without Redis each instance counts on its own", 2 * LIMIT <= alone <= 2 * LIMIT * 1.3 and clear, limit=LIMIT, served=alone
    )
    for server in pair:
        server.kill()

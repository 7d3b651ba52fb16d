"""kill -9 under load: acknowledged writes survive, refused writes leave no trace, no write is
partial."""

import asyncio
import random

from client import Http
from rig import Server
from services import Postgres, Tables
from traffic import Load, told, verified


async def run(rig):
    await on_sqlite(rig)
    await on_postgres(rig)


async def on_sqlite(rig):
    server = Server(rig, "crash-sqlite")
    await killed(rig, "SQLite", server, Tables(file=server.file))


async def on_postgres(rig):
    postgres = await Postgres.start(rig)
    database = postgres.database()
    server = Server(rig, "crash-postgres", postgres.url(database))
    await killed(rig, "PostgreSQL", server, Tables(postgres=postgres, database=database))


async def killed(rig, kind, server, tables):
    times = 20 if rig.long else 2
    await server.start()
    load = await Load.prepare(server.address, followers=20, writers=8)
    load.writers.append(load.log_out)
    await load.begin()
    chance = random.Random(1)
    back = []
    for _ in range(times):
        await load.acknowledged(chance.randint(50, 300))
        load.up.clear()
        server.kill()
        begun = asyncio.get_running_loop().time()
        await server.start()
        back.append(asyncio.get_running_loop().time() - begun)
        load.up.set()
    await load.acknowledged(50)
    wrong, figures = await verified(load, tables)
    told(rig, f"kill -9 under load, {times} times, {kind}", wrong, {**figures, "longest_restart_s": max(back)})
    await revoked(rig, kind, server, load)
    server.kill()


async def revoked(rig, kind, server, load):
    """Tokens of ended sessions are rejected by GraphQL and REST; the continuing session still
    works."""
    http, alive = Http(server.address), 0
    for token, refresh in load.ledger.revoked:
        access = await http.ask("POST", "/graphql", {"query": "{ __typename }"}, token)
        renewed = await http.ask("POST", "/auth/refresh", {"refresh_token": refresh})
        alive += (access.status, renewed.status) != (401, 401)
    kept = await load.owner.ask("{ viewer { id } }")
    figures = {"sessions_ended": len(load.ledger.revoked), "good_again": alive}
    rig.check(f"ended sessions stay ended, {kind}", not alive and kept.status == 200 and load.ledger.revoked, **figures)

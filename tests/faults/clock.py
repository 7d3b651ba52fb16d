"""Wall clock jumps of an hour while the server runs: tokens, rate limits and cursors behave as
documented.

The server uses the wall clock for token lifetimes, rate limit windows and stored timestamps. Event
order, cursors and timeouts do not depend on it.
"""

import asyncio
import struct

from client import Http, Person, Socket
from rig import Server, compiled
from services import Tables
from traffic import Load, told, verified

HOUR = 3600
LIMIT = 40


class Clock:
    def __init__(self, rig):
        self.file = rig.directory / "clock-offset"
        self.set(0)

    def set(self, seconds):
        # Write in place: the server has mapped the file.
        with open(self.file, "r+b" if self.file.exists() else "w+b") as file:
            file.write(struct.pack("=q", seconds))


async def run(rig):
    clock = Clock(rig)

    def server(name, **settings):
        made = Server(rig, name, ACCESS_TOKEN_EXPIRE_MINUTES="15", **settings)
        made.preload, made.env["OFFSET"] = compiled(rig, "clock"), str(clock.file)
        return made

    main = await server("clock").start()
    await tokens(rig, main, clock)
    await events(rig, main, clock)
    main.kill()
    limited = await server(
        "clock-limits", RATE_LIMIT_ENABLED="true", RATE_LIMIT_GRAPHQL_PER_MINUTE=str(LIMIT),
        RATE_LIMIT_CREDENTIALS_PER_MINUTE="1000",
    ).start()
    await windows(rig, limited, clock)
    limited.kill()


async def status(person):
    return (await person.ask("{ viewer { id } }")).status


async def renewed(person):
    answer = await Http(person.http.where).ask("POST", "/auth/refresh", {"refresh_token": person.refresh})
    if answer.status == 200:
        person.token, person.refresh = answer.json["access_token"], answer.json["refresh_token"]
    return answer.status


async def tokens(rig, server, clock):
    person = await Person.sign_up(server.address, "ada")
    seen = {"now": await status(person)}
    socket = await Socket.open(server.address, person.token)
    clock.set(HOUR)
    # The access token (15 minutes) has expired; the session (7 days) has not.
    seen["an_hour_later"] = await status(person)
    seen["refreshed"] = await renewed(person)
    seen["with_the_new_one"] = await status(person)
    rig.check("clock +1 h: access tokens expire, sessions continue", list(seen.values()) == [200, 401, 200, 200], **seen)
    # A socket's deadline is measured by the monotonic clock: 15 minutes after it was opened.
    socket.send({"type": "ping"})
    open_still = (await asyncio.wait_for(socket.receive(), 5))["type"] == "pong"
    socket.close()
    rig.check("clock +1 h: an open socket stays", open_still)

    clock.set(0)
    seen = {"token_of_the_future": await status(person)}
    seen["refreshed"] = await renewed(person)
    seen["with_the_new_one"] = await status(person)
    fresh = await Person.log_in(server.address, "ada")
    seen["logged_in"] = await status(fresh)
    clock.set(-HOUR)
    seen["an_hour_earlier"] = await status(fresh)
    seen["refreshed_there"] = await renewed(fresh)
    seen["with_that_one"] = await status(fresh)
    there = await Person.log_in(server.address, "ada")
    seen["logged_in_there"] = await status(there)
    clock.set(0)
    seen["home_again"] = await renewed(there)
    # A token issued in the future may or may not be accepted, but refreshing or logging in must
    # yield a valid one.
    must = ("refreshed", "with_the_new_one", "logged_in", "refreshed_there", "with_that_one", "logged_in_there", "home_again")
    rig.check("clock -1 h: refresh and login still work", all(seen[name] == 200 for name in must), **seen)


async def events(rig, server, clock):
    """The clock jumps back and forth under load: event order, cursors and subscribers are not
    affected."""
    # Jumps stay within the 15 minutes of a token, so that nobody has to log in again.
    clock.set(-300)
    load = await Load.prepare(server.address, name="bob", followers=5, writers=4)
    await load.begin()
    for offset in (300, -300, 0) * (3 if rig.long else 1):
        clock.set(offset)
        await load.acknowledged(60)
    wrong, figures = await verified(load, Tables(file=server.file))
    outcomes = load.ledger.outcomes()
    # A machine that stalls for a second may time out while waiting for a database connection.
    ok = set(outcomes) <= {"200", "503 SERVICE_UNAVAILABLE"}
    wrong += [] if ok else [f"answers: {outcomes}"]
    told(rig, "clock ±10 min under load: no event lost or duplicated", wrong, figures)


async def windows(rig, server, clock):
    """Rate limits: a jump forward frees the quota at once; after a jump back nobody waits longer
    than a window."""
    person = await Person.sign_up(server.address, "carol")

    async def burst():
        found = [await person.ask("{ __typename }") for _ in range(LIMIT + 20)]
        refused = [int(answer.retry_after) for answer in found if answer.status == 429]
        return len(found) - len(refused), max(refused, default=0)

    first, waits = await burst()
    clock.set(120)
    later, later_waits = await burst()
    clock.set(-HOUR)
    back, back_waits = await burst()
    clock.set(0)
    again, again_waits = await burst()
    bounded = max(waits, later_waits, back_waits, again_waits) <= 120
    ok = first <= LIMIT * 1.3 and later >= LIMIT * 0.9 and bounded and back >= 1 and again <= LIMIT * 1.3
    rig.check(
        "clock: windows of rate limits", ok, limit=LIMIT, served=first, served_2_min_later=later, served_1_h_back=back,
        served_home_again=again, longest_retry_after_s=max(waits, later_waits, back_waits, again_waits),
    )

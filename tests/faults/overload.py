"""Overload: goodput stays near capacity, the excess is refused with Retry-After, and latency
recovers at once."""

import asyncio
import contextlib
import os
import time

from client import Http, Person
from load import HEAVY, LIGHT, Sockets, http, request, together
from rig import Server, Share, eventually, quantile

# Latency has recovered when it is below this multiple of the earlier latency.
NORMAL = 3


async def run(rig):
    await storm(rig)
    await logins(rig)
    await reconnect(rig)


async def furnished(server, comments=5, tasks=50):
    person = await Person.sign_up(server.address, "ada")
    project = await person.project()
    comment = "mutation ($id: ID!) { addComment(input: { taskId: $id, body: \"well\" }) { comment { id } } }"
    for _ in range(tasks):
        task = await person.task(project)
        for _ in range(comments):
            await person.data(comment, {"id": task})
    return person


async def latency(person, query, times=20):
    """Median latency of sequential requests."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        answer = await person.ask(query)
        if answer.status == 200:
            took.append(time.monotonic() - begun)
    return quantile(took, 0.5) if len(took) == times else 99.0


@contextlib.contextmanager
def apart():
    """The server started inside gets one half of the cores and the load generators the other, so
    that the generators do not take CPU from the server."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half:
        os.sched_setaffinity(0, cores[:half])
    try:
        yield lambda: half and os.sched_setaffinity(0, cores[half:])
    finally:
        os.sched_setaffinity(0, cores)


async def storm(rig):
    """Offers three times the capacity in open loops."""
    with apart() as asking:
        server = await Server(rig, "overload", MAX_CONNECTIONS="20000", MAX_CONNECTIONS_PER_ADDRESS="20000").start()
        asking()
        await stormed(rig, server)


async def stormed(rig, server):
    person = await furnished(server)
    raw, seconds = [request(HEAVY, person.token)], 60 if rig.long else 10
    before = await latency(person.again(), HEAVY)
    peak, best, by_cpu = 0.0, 0, 0.0
    for connections in (2, 4, 8):
        used = server.process.cpu()
        result = await http(server, raw, 5 if rig.long else 2, connections)
        by_cpu = max(by_cpu, result["good"] / (server.process.cpu() - used))
        if result["rate"] > peak:
            peak, best = result["rate"], connections
    calm = server.process.memory()
    most = calm

    async def watch():
        nonlocal most
        while True:
            most = max(most, server.process.memory())
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    used = server.process.cpu()
    parts = [http(server, raw, seconds, 2000, rate=peak * 3 / 2) for _ in range(2)]
    result = together(await asyncio.gather(*parts))
    used = server.process.cpu() - used
    begun = time.monotonic()
    probe = person.again()

    async def normal():
        return await latency(probe, HEAVY, 5) <= before * NORMAL + 0.01

    await eventually("normal latency", 60, normal)
    took = time.monotonic() - begun
    watching.cancel()
    # Skip the first seconds, which fill the queues.
    steady = result["by_second"][2:]
    goodput = sum(steady) / len(steady)
    # Other processes on the machine reduce goodput per second, but not goodput per second of CPU.
    share, cpu_share = goodput / peak, result["good"] / used / by_cpu
    refused = sum(count for status, count in result["statuses"].items() if status in ("429", "503"))
    others = {status: count for status, count in result["statuses"].items() if status not in ("200", "429", "503")}
    rig.check(
        "overload: goodput at three times capacity", max(share, cpu_share) >= 0.8, peak_per_s=peak, at_connections=best,
        offered_per_s=peak * 3, goodput_per_s=goodput, share=share,
        share_by_cpu=cpu_share, p99_s=result["p99"], unsent=result["unsent"],
    )
    rig.check(
        "overload: the excess is refused with Retry-After", not others and result["clear"] == refused, refused=refused,
        with_retry_after=result["clear"], others=others,
    )
    rig.check("overload: memory is bounded", most < calm + 400e6, calm_mb=calm / 1e6, most_mb=most / 1e6)
    rig.check("overload: latency recovers", took <= 5, before_s=before, after_s=took)
    server.kill()


async def logins(rig):
    """Many concurrent logins with the default hashing cost: reads continue."""
    hashes = {"ARGON2_MEMORY_KIB": None, "ARGON2_PASSES": None}
    server = await Server(rig, "logins", **hashes).start()
    person = await furnished(server, tasks=5)
    raw, seconds = [request(LIGHT, person.token)], 10 if rig.long else 4
    calm = await http(server, raw, seconds, 4)
    stop, statuses = asyncio.Event(), {}

    async def attempt(number):
        connection = Http(server.address)
        while not stop.is_set():
            answer = await connection.ask(
                "POST", "/auth/login", {"username": "ada" if number % 2 else f"nobody{number}", "password": "Correct-Horse-7"}
            )
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status in (429, 503):
                assert answer.retry_after, "without Retry-After"
                await asyncio.sleep(0.05)

    storming = [asyncio.create_task(attempt(number)) for number in range(100)]
    await asyncio.sleep(0.5)
    busy = await http(server, raw, seconds, 4)
    stop.set()
    await asyncio.gather(*storming)
    share = busy["rate"] / calm["rate"]
    ok = set(busy["statuses"]) == {"200"} and share >= 0.2 and busy["p99"] < 0.5
    rig.check(
        "a login storm does not starve reads", ok, clients=len(storming), logins={str(key): n for key, n in statuses.items()},
        reads_per_s_calm=calm["rate"], reads_per_s=busy["rate"], share=share, p99_calm_s=calm["p99"], p99_s=busy["p99"],
    )
    server.kill()


async def reconnect(rig):
    """All sockets break at once, and all clients reconnect at once from their last cursors."""
    count = 10_000 if rig.long else 500
    server = await Server(rig, "reconnect", MAX_CONNECTIONS="20000", MAX_CONNECTIONS_PER_ADDRESS="20000").start()
    person = await Person.sign_up(server.address, "ada")
    project = await person.project()
    after = await person.cursor()
    await person.task(project)
    async with Sockets(server, person.token, count) as crowd:
        await crowd.open(after)

        async def everybody():
            return (await crowd.say())["served"] == count

        begun = time.monotonic()
        await eventually("all sockets served", 120, everybody, pause=0.1)
        first = time.monotonic() - begun
        each = server.process.memory() / count
        server.kill()
        await eventually("all sockets broken", 30, lambda: nobody(crowd), pause=0.1)
        cut = await crowd.say()
        await server.start()
        begun = time.monotonic()
        machine = Share([server.process.pid, *(process.pid for process in crowd.processes)])
        try:
            await eventually("all sockets served again", 120, everybody, pause=0.1)
        except TimeoutError:
            pass
        took, share, told = time.monotonic() - begun, machine(), await crowd.say()
        rig.check(
            "all sockets reconnect at once and are served", told["served"] == count and took * share <= 15, sockets=count,
            served=told["served"], served_after_s=took, share_of_machine=share, on_a_machine_of_its_own_s=took * share,
            server_cpu_s=server.process.cpu(), tries_that_failed=told["breaks"] - cut["breaks"],
            failed_at={name[10:]: count - cut.get(name, 0) for name, count in told.items() if "broken_at" in name}, opened_at_first_in_s=first, memory_per_socket_kb=each / 1e3,
        )
    await eventually("released file descriptors", 30, lambda: server.process.files() < 100, pause=0.1)
    server.kill()


async def nobody(crowd):
    return (await crowd.say())["served"] == 0

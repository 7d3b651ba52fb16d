"""Soak test: mixed load for a long time; memory, open files and latency must stay flat.

FAULTS_SOAK_SECONDS sets the duration (default 20 minutes with --long). Charts are written to
soak.svg next to the figures.
"""

import asyncio
import os
import time
from collections import Counter

import plot
from client import Broken, Http
from load import HEAVY, LIGHT, Sockets
from rig import Server, Share, eventually, quantile
from services import Tables
from traffic import Load, told, verified

SOCKETS, READERS, EVERY = 2000, 8, 5
# Share of the samples to skip while caches and pools fill.
WARM = 0.2


async def run(rig):
    seconds = float(os.environ.get("FAULTS_SOAK_SECONDS", 1200 if rig.long else 30))
    count = SOCKETS if rig.long else 200
    server = await Server(rig, "soak", MAX_CONNECTIONS="20000", MAX_CONNECTIONS_PER_ADDRESS="20000").start()
    load = await Load.prepare(server.address, followers=10, writers=2, pause=0.25)
    await load.begin()
    await load.acknowledged(20)
    async with Sockets(server, load.owner.token, count) as crowd:
        await crowd.open(load.start)
        await eventually("all sockets open", 120, lambda: is_open(crowd, count), pause=0.5)
        soak = Soak(server, load)
        readers = [asyncio.create_task(soak.read(number)) for number in range(READERS)]
        samples = await soak.sample(seconds, [server.process.pid, *(process.pid for process in crowd.processes)])
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        crowded = await crowd.say()
    wrong, figures = await verified(load, Tables(file=server.file), within=60)
    outcomes = dict(Counter(soak.outcomes) + Counter(load.ledger.outcomes()))
    told(rig, f"soak of {seconds:.0f} s: no write lost or partial", wrong, figures)
    good = set(outcomes) <= {"200"} and crowded["served"] == count and not crowded["breaks"]
    rig.check(
        "soak: every request succeeds, every socket is served", good, requests=soak.asked, outcomes=outcomes, sockets=crowded["served"],
        sockets_broken=crowded["breaks"], events_told=crowded["events"],
    )
    judge(rig, samples)
    rig.output.mkdir(parents=True, exist_ok=True)
    (rig.output / "soak.svg").write_text(plot.page(charts(samples)))
    rig.note(f"plots: {rig.output / 'soak.svg'}")
    server.kill()


async def is_open(crowd, count):
    return (await crowd.say())["served"] == count


class Soak:
    def __init__(self, server, load):
        self.server, self.load = server, load
        self.times, self.outcomes, self.asked = [], {}, 0

    async def read(self, number):
        """Sends a mix of queries and logins, some on new connections."""
        person, anyone = self.load.owner.again(), Http(self.server.address)
        turn = number
        while True:
            turn += 1
            begun = time.monotonic()
            try:
                if turn % 20 == 0:
                    login = {"username": self.load.owner.name, "password": "Correct-Horse-7"}
                    answer = await anyone.ask("POST", "/auth/login", login)
                else:
                    answer = await person.ask(HEAVY if turn % 5 == 0 else LIGHT)
                    if turn % 7 == 0:
                        person.http.close()
                    self.times.append(time.monotonic() - begun)
                told_as = str(answer.status)
            except Broken as broken:
                told_as = str(broken)
            self.outcomes[told_as] = self.outcomes.get(told_as, 0) + 1
            self.asked += 1
            await asyncio.sleep(0.1)

    async def sample(self, seconds, pids):
        begun, samples = time.monotonic(), []
        while (passed := time.monotonic() - begun) < seconds:
            machine = Share(pids)
            await asyncio.sleep(min(EVERY, seconds / 20))
            times, self.times = self.times, []
            process = self.server.process
            samples.append({
                "seconds": passed, "memory_mb": process.memory() / 1e6, "files": process.files(),
                "p50_ms": quantile(times, 0.5) * 1e3, "p99_ms": quantile(times, 0.99) * 1e3,
                "share": (share := machine()), "own_p50_ms": quantile(times, 0.5) * 1e3 * share,
                "own_p99_ms": quantile(times, 0.99) * 1e3 * share, "database_mb": self.server.file.stat().st_size / 1e6,
            })
        return samples


def judge(rig, samples):
    """Flat means that the last third is not above the first one, apart from noise. Latency is
    scaled to the share of the machine that was available."""
    samples = samples[int(len(samples) * WARM):]
    third = max(1, len(samples) // 3)
    for name, share, room in (("memory_mb", 1.15, 15), ("files", 1.02, 20), ("own_p50_ms", 1.5, 3), ("own_p99_ms", 2, 30)):
        begin, end = (quantile([sample[name] for sample in part], 0.5) for part in (samples[:third], samples[-third:]))
        most = max(sample[name] for sample in samples)
        ok = end <= begin * share + room
        rig.check(f"soak: {name.replace('_', ' ')} is flat", ok, begin=begin, end=end, most=most)


def charts(samples):
    def line(name):
        return [(sample["seconds"], sample[name]) for sample in samples]

    return [
        ("Resident memory", "MB", [("memory", "#06c", line("memory_mb")), ("database file", "#999", line("database_mb"))]),
        ("Open files", "", [("files", "#06c", line("files"))]),
        ("Share of the machine available to the run", "", [("share", "#06c", line("share"))]),
        ("Latency of queries", "ms", [("p50", "#06c", line("p50_ms")), ("p99", "#c60", line("p99_ms"))]),
    ]

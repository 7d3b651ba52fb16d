"""Starts load_worker.py processes and controls them."""

import asyncio
import json
import sys

from client import request_bytes
from rig import HERE

# A query that costs the server a few milliseconds and the generator almost nothing: a page of tasks
# with related objects.
HEAVY = """{ tasks(first: 50) { nodes { id title status priority createdAt assignee { username } labels { name }
  comments(first: 5) { nodes { id body author { username } } } } } }"""
LIGHT = "{ viewer { id username } }"


def request(query, token, variables=None):
    return request_bytes("POST", "/graphql", {"query": query, "variables": variables or {}}, token).decode("latin-1")


async def start(order):
    return await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "load_worker.py"), json.dumps(order), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def http(server, requests, seconds, connections, rate=None):
    """Runs a closed loop over `connections`, or an open loop with `rate` requests a second."""
    order = {
        "mode": "open" if rate else "closed", "port": server.port, "requests": requests, "seconds": seconds,
        "connections": connections, "rate": rate,
    }
    process = await start(order)
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator failed")
        return json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def together(results):
    """Adds up the results of several generators."""
    statuses = {}
    for result in results:
        for status, count in result["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    seconds = [sum(counts) for counts in zip(*(result["by_second"] for result in results))]
    p99 = [result["p99"] for result in results if result["p99"] is not None]
    return {
        "good": sum(result["good"] for result in results), "rate": sum(result["rate"] for result in results),
        "clear": sum(result["clear"] for result in results), "statuses": statuses,
        "unsent": sum(result["unsent"] for result in results), "by_second": seconds, "p99": max(p99, default=0.0),
    }


class Sockets:
    """Sockets, spread over several processes, that reconnect whenever they break."""

    def __init__(self, server, token, count, each=1250):
        self.server, self.token, self.count = server, token, count
        self.shares = [min(each, count - at) for at in range(0, count, each)]
        self.processes = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.end()

    async def open(self, after):
        for share in self.shares:
            order = {"mode": "sockets", "port": self.server.port, "token": self.token, "count": share, "after": after}
            self.processes.append(await start(order))

    async def say(self, **order):
        """Queries every process; returns the totals of served sockets, breaks and events."""
        told = {"served": 0, "breaks": 0, "events": 0}
        for process in self.processes:
            process.stdin.write(json.dumps(order).encode() + b"\n")
        for process in self.processes:
            line = await process.stdout.readline()
            for name, count in json.loads(line).items():
                told[name] = told.get(name, 0) + count
        return told

    async def end(self):
        while self.processes:
            process = self.processes.pop()
            process.kill()
            await process.wait()

"""Load generator, run as separate processes so that the measuring process is not the bottleneck.

    python load_worker.py '{"mode": …}'     reads one JSON object, writes one per line; ends at the end of standard input
"""

import asyncio
import base64
import json
import os
import random
import sys
import time

sys.dont_write_bytecode = True

from client import frame  # noqa: E402

TICK = 0.002
PACE = 0.01
# The step at which a socket broke.
STEPS = ["upgrade", "greeting", "subscribe", "open"]


class Channel(asyncio.Protocol):
    """A keep-alive connection that sends requests and reports the status of each answer."""

    def __init__(self, done, lost):
        self.done, self.lost, self.buffer, self.begun, self.transport = done, lost, b"", None, None

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, raw):
        self.begun = time.monotonic()
        self.transport.write(raw)

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length: ")
        size = int(head[at + 16:].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + size:
            return
        self.buffer = self.buffer[end + 4 + size:]
        status, begun = int(head[9:12]), self.begun
        self.begun = None
        self.done(self, status, b"\r\nretry-after: " in head, time.monotonic() - begun)

    def connection_lost(self, error):
        self.lost(self)


class Http:
    """Closed loop: each connection sends its next request after the answer. Open loop: a fixed rate
    of requests."""

    def __init__(self, order):
        self.order = order
        self.raws = [raw.encode("latin-1") for raw in order["requests"]]
        self.statuses, self.times, self.clear = {}, [], 0
        self.idle, self.connections, self.stopped = [], 0, False
        # Successful answers per second, because the first seconds fill queues and are not steady
        # state.
        self.good, self.begun = {}, time.monotonic()

    def done(self, channel, status, retry, seconds):
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.times.append(seconds)
            second = int(time.monotonic() - self.begun)
            self.good[second] = self.good.get(second, 0) + 1
        else:
            self.clear += retry
        if self.order["mode"] == "closed" and not self.stopped:
            if status == 200:
                channel.ask(random.choice(self.raws))
            else:
                # Retry after a refusal, sooner than Retry-After asks.
                asyncio.get_running_loop().call_later(0.05, self.again, channel)
        else:
            self.idle.append(channel)

    def again(self, channel):
        if not self.stopped and not channel.transport.is_closing():
            channel.ask(random.choice(self.raws))

    def lost(self, channel):
        self.connections -= 1
        if channel.begun is not None and not self.stopped:
            self.statuses[0] = self.statuses.get(0, 0) + 1
        if channel in self.idle:
            self.idle.remove(channel)

    async def connect(self):
        self.connections += 1
        try:
            made = asyncio.get_running_loop().create_connection(
                lambda: Channel(self.done, self.lost), "127.0.0.1", self.order["port"]
            )
            _, channel = await asyncio.wait_for(made, 10)
            return channel
        except (OSError, TimeoutError):
            self.connections -= 1
            self.statuses[-1] = self.statuses.get(-1, 0) + 1
            return None

    async def run(self):
        seconds, most = self.order["seconds"], self.order["connections"]
        channels = await asyncio.gather(*(self.connect() for _ in range(most)))
        channels = [channel for channel in channels if channel]
        self.begun = time.monotonic()
        unsent = 0
        if self.order["mode"] == "closed":
            for channel in channels:
                channel.ask(random.choice(self.raws))
            await asyncio.sleep(seconds)
        else:
            self.idle, sent = channels, 0
            while (passed := time.monotonic() - self.begun) < seconds:
                due = int(passed * self.order["rate"])
                while sent + unsent < due:
                    if self.idle:
                        self.idle.pop().ask(random.choice(self.raws))
                        sent += 1
                    else:
                        unsent += 1
                await asyncio.sleep(TICK)
        took = time.monotonic() - self.begun
        self.stopped = True
        self.times.sort()
        at = lambda share: self.times[int(len(self.times) * share)] if self.times else None  # noqa: E731
        good = sum(count for second, count in self.good.items() if second < seconds)
        return {
            "good": good, "rate": good / took, "statuses": self.statuses, "clear": self.clear, "unsent": unsent,
            "p50": at(0.5), "p99": at(0.99), "by_second": [self.good.get(second, 0) for second in range(int(seconds))],
        }


class Subscriber(asyncio.Protocol):
    """A socket that subscribes, and resumes from its last cursor when it breaks."""

    def __init__(self, crowd, tries):
        self.crowd, self.tries, self.buffer, self.step = crowd, tries, b"", 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.crowd.opening)

    def data_received(self, data):
        if self.step == 3:
            # After its first event it only answers pings.
            if b'"type":"ping"' in data:
                self.transport.write(self.crowd.pong)
            self.crowd.events += data.count(b'"type":"next"')
            return
        self.buffer += data
        if self.step == 0 and b"\r\n\r\n" in self.buffer:
            if b" 101 " not in self.buffer[:20]:
                self.transport.abort()
                return
            self.step, self.buffer = 1, b""
            self.transport.write(self.crowd.greeting)
        elif self.step == 1 and b"connection_ack" in self.buffer:
            self.step, self.buffer = 2, b""
            self.transport.write(self.crowd.subscribe)
        elif self.step == 2 and b'"type":"next"' in self.buffer:
            self.step, self.buffer = 3, b""
            self.tries = 0
            self.crowd.served += 1

    def connection_lost(self, error):
        if self.step == 3:
            self.crowd.served -= 1
        self.crowd.broken(self.tries, STEPS[self.step])


class Crowd:
    """Sockets that reconnect whenever they break. Reports on request how many are served."""

    def __init__(self, order):
        self.order, self.served, self.breaks, self.events, self.at = order, 0, 0, 0, {}
        key = base64.b64encode(os.urandom(16)).decode()
        self.opening = (
            f"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        ).encode()
        token = {"Authorization": f"Bearer {order['token']}"}
        self.greeting = frame(1, json.dumps({"type": "connection_init", "payload": token}).encode())
        self.pong = frame(1, b'{"type":"pong"}')
        self.after(order["after"])

    def after(self, cursor):
        query = "subscription ($after: String) { events(after: $after) { __typename id cursor } }"
        payload = {"query": query, "variables": {"after": cursor}}
        self.subscribe = frame(1, json.dumps({"id": "1", "type": "subscribe", "payload": payload}).encode())

    def broken(self, tries, at):
        """Reconnects with exponential backoff and jitter, as the documentation asks of clients."""
        self.breaks += 1
        self.at[at] = self.at.get(at, 0) + 1
        pause = random.uniform(0.5, 1) * min(4, 0.25 * 2**tries)
        asyncio.get_running_loop().call_later(pause, self.connect, tries + 1)

    def connect(self, tries=0):
        asyncio.get_running_loop().create_task(self.open(tries))

    async def open(self, tries):
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Subscriber(self, tries), "127.0.0.1", self.order["port"]
            )
        except OSError:
            self.broken(tries, "connect")

    async def run(self):
        opening = asyncio.get_running_loop().create_task(self.arrive())
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            order = json.loads(line)
            if "after" in order:
                self.after(order["after"])
            told = {"served": self.served, "breaks": self.breaks, "events": self.events}
            print(json.dumps({**told, **{f"broken_at_{step}": count for step, count in self.at.items()}}), flush=True)
        opening.cancel()

    async def arrive(self):
        """Opens the sockets one by one; the test is about reconnecting."""
        for _ in range(self.order["count"]):
            self.connect()
            await asyncio.sleep(PACE)


async def main():
    order = json.loads(sys.argv[1])
    if order["mode"] == "sockets":
        await Crowd(order).run()
    else:
        print(json.dumps(await Http(order).run()), flush=True)


asyncio.run(main())

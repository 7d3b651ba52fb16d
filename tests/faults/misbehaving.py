"""Slow, silent and hostile clients: others are not affected, and writes stay atomic."""

import asyncio

import random
import socket
import struct
import time

from client import Broken, Http, Person, Socket, read_answer, request_bytes
from rig import Server, eventually, quantile
from services import Tables
from traffic import EVENTS, Ledger, contradictions

HEADERS, BODY, IDLE, WRITE = 2, 2, 3, 2
PLACES = 200
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def run(rig):
    server = await Server(
        rig, "misbehaving", MAX_CONNECTIONS=str(PLACES), HEADER_TIMEOUT_SECONDS=str(HEADERS), BODY_TIMEOUT_SECONDS=str(BODY),
        KEEP_ALIVE_SECONDS=str(IDLE), WS_WRITE_SECONDS=str(WRITE), WS_INIT_SECONDS="1",
    ).start()
    person = await Person.sign_up(server.address, "ada")
    misbehaving = MisbehavingClients(rig, server, person)
    for part in (
        misbehaving.slowloris, misbehaving.half_closed, misbehaving.drips, misbehaving.never_reads, misbehaving.huge_headers, misbehaving.pipelined,
        misbehaving.rapid_reset, misbehaving.disconnects,
    ):
        await part()
        await misbehaving.unharmed(part.__name__)
    server.kill()


class MisbehavingClients:
    def __init__(self, rig, server, person):
        self.rig, self.server, self.person = rig, server, person
        self.sockets = server.process.sockets()
        self.post = request_bytes("POST", "/graphql", {"query": "{ __typename }"}, person.token)

    async def connect(self):
        return await asyncio.open_connection(*self.server.address)

    async def polite(self):
        """Duration of a request on a new connection, in seconds."""
        begun, http = time.monotonic(), Http(self.server.address)
        answer = await http.ask("POST", "/graphql", {"query": "{ viewer { id } }"}, self.person.token)
        http.close()
        if answer.status != 200:
            raise Broken(f"{answer.status}", True)
        return time.monotonic() - begun

    async def unharmed(self, after):
        """Checks that the server still answers and has released the connections."""
        took = await self.polite()
        sockets = 0

        def released():
            nonlocal sockets
            sockets = self.server.process.sockets()
            # The connection of this check itself may remain.
            return sockets <= self.sockets + 1

        try:
            await eventually("released connections", IDLE + 8, released)
        except TimeoutError:
            pass
        self.rig.check(
            f"not affected by: {after.replace('_', ' ')}", released() and took < 1, answer_s=took, sockets=sockets,
            memory_mb=self.server.process.memory() / 1e6,
        )

    @staticmethod
    async def ends(reader, within):
        """Seconds until the server closes the connection; None if it does not."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(within):
                while await reader.read(65536):
                    pass
        except TimeoutError:
            return None
        except OSError:
            pass
        return time.monotonic() - begun

    async def slowloris(self):
        """More half-open requests than connection slots, each sending a byte now and then."""
        held, count = [], PLACES * 3 // 2
        stopping = False

        async def drip(writer):
            for byte in b"X-Slow: " + b"x" * 1000:
                if stopping or writer.is_closing():
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(0.3)

        dripping = []
        for _ in range(count):
            reader, writer = await self.connect()
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
            held.append((reader, writer))
            dripping.append(asyncio.create_task(drip(writer)))
        took = await self.politely(5)
        closed = await asyncio.gather(*(self.ends(reader, HEADERS + 5) for reader, _ in held))
        stopping = True
        await asyncio.gather(*dripping, return_exceptions=True)
        longest = max((seconds for seconds in closed if seconds is not None), default=-1)
        ok = None not in closed and max(took) < 1.5
        self.rig.check("slowloris", ok, connections=count, places=PLACES, others_wait_s=max(took), closed_after_s=longest)
        for _, writer in held:
            writer.close()

    async def half_closed(self):
        """A client that half-closes gets its answer; one that only connects is disconnected."""
        reader, writer = await self.connect()
        writer.write(self.post)
        writer.write_eof()
        try:
            async with asyncio.timeout(5):
                status = (await read_answer(reader)).status
        except (EOFError, OSError, TimeoutError) as error:
            status = type(error).__name__
        silent, silent_writer = await self.connect()
        shut, shut_writer = await self.connect()
        shut_writer.write_eof()
        closed = [await self.ends(reader, HEADERS + 3) for reader in (silent, shut)]
        # In HTTP/1 a half-close after the request may be treated as a disconnect, so a missing
        # answer is acceptable; a hang is not.
        self.rig.check(
            "half-closed", None not in closed and status in (200, "IncompleteReadError"), answered=status,
            silent_closed_after_s=closed[0], shut_closed_after_s=closed[1],
        )
        for open_writer in (writer, silent_writer, shut_writer):
            open_writer.close()

    async def drips(self):
        """A request body of one byte per second."""
        head, body = self.post.split(b"\r\n\r\n", 1)
        clients = [await self.connect() for _ in range(20)]

        async def drip(reader, writer):
            begun = time.monotonic()
            writer.write(head + b"\r\n\r\n")
            answer = asyncio.create_task(read_answer(reader))
            for byte in body:
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait([answer], timeout=1)
                if done:
                    break
            try:
                status = (await answer).status
            except (OSError, EOFError):
                status = 0
            return status, time.monotonic() - begun

        found = await asyncio.gather(*(drip(*client) for client in clients))
        ended = all(status in (0, 400, 408, 413) for status, _ in found)
        longest = max(seconds for _, seconds in found)
        self.rig.check(
            "a body of one byte per second", ended and longest < BODY + 3, clients=len(found),
            statuses={str(status): 1 for status, _ in found}, ended_after_s=longest,
        )
        for _, writer in clients:
            writer.close()

    async def never_reads(self):
        """Sockets that subscribe but do not read are dropped; others with the same events are not
        delayed."""
        project = await self.person.project()
        task = await self.person.task(project)
        # With a closed receive window the client's kernel does not show the disconnect; count the
        # server's sockets.
        words = EVENTS.replace("id cursor", "id cursor ... on CommentAddedEvent { comment { body } }")
        deaf, sockets = [], self.server.process.sockets()
        for _ in range(10):
            plain = socket.socket()
            # The smallest receive buffer, so that the server notices soon.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, self.server.address)
            reader, writer = await asyncio.open_connection(sock=plain, limit=2048)
            deaf.append(await greet(reader, writer, self.person.token))
            for number in range(20):
                deaf[-1].subscribe(words, name=str(number))
            writer.transport.pause_reading()
        hearing = await Socket.open(self.server.address, self.person.token)
        hearing.subscribe(EVENTS)
        await asyncio.sleep(0.3)
        delays = []
        comment = "mutation ($id: ID!, $b: String!) { addComment(input: { taskId: $id, body: $b }) { comment { id } } }"
        before = self.server.process.memory()
        for _ in range(150):
            begun = time.monotonic()
            await self.person.data(comment, {"id": task, "b": "x" * 5000})
            async with asyncio.timeout(5):
                await hearing.receive()
            delays.append(time.monotonic() - begun)
        grown = self.server.process.memory() - before
        hearing.close()

        def held():
            return max(0, self.server.process.sockets() - sockets)

        begun = time.monotonic()
        try:
            await eventually("dropped sockets", WRITE * 3 + 5, lambda: held() == 0)
        except TimeoutError:
            pass
        self.rig.check(
            "sockets that never read", held() == 0 and quantile(delays, 0.99) < 1, sockets=len(deaf), still_held=held(),
            dropped_after_s=time.monotonic() - begun, others_p99_s=quantile(delays, 0.99), grown_mb=grown / 1e6,
        )
        for one in deaf:
            one.writer.transport.abort()

    async def huge_headers(self):
        found = {}
        cases = {
            "one of 1 MB": b"X-Huge: " + b"x" * 1_000_000 + b"\r\n",
            "10000 of them": b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
            "a URL of 200 kB": None,
        }
        for name, lines in cases.items():
            reader, writer = await self.connect()
            path = "/livez?" + "x" * 200_000 if lines is None else "/livez"
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + (lines or b"") + b"\r\n")
                async with asyncio.timeout(5):
                    found[name] = (await read_answer(reader)).status
            except (OSError, EOFError):
                found[name] = "closed"
            except TimeoutError:
                found[name] = "hangs"
            writer.close()
        self.rig.check("huge headers", all(was in (400, 414, 431, "closed") for was in found.values()), **{"refused_by": found})

    async def pipelined(self):
        """Many pipelined requests on one connection: all answered, in order."""
        count = 200
        reader, writer = await self.connect()
        for number in range(count):
            body = {"query": f"{{ n{number}: __typename }}"}
            writer.write(request_bytes("POST", "/graphql", body, self.person.token))
        right = 0
        try:
            async with asyncio.timeout(20):
                for number in range(count):
                    right += f"n{number}" in (await read_answer(reader)).json["data"]
        except (OSError, EOFError, TimeoutError):
            pass
        writer.close()
        self.rig.check("pipelining", right == count, requests=count, answered_in_order=right)

    async def rapid_reset(self):
        """HTTP/2 rapid reset (CVE-2023-44487): opens and resets streams as fast as the server
        accepts them, on one connection after another, while other clients send requests."""
        cpu, sent, ended_by = self.server.process.cpu(), 0, set()
        others = asyncio.create_task(self.politely(10))
        while not others.done():
            more, goaway = await self.resets()
            sent += more
            ended_by.add(goaway)
        took = await others
        self.rig.check(
            "HTTP/2 rapid reset", sent and max(took) < 1.5, resets_sent=sent, ended_by=" or ".join(ended_by),
            others_wait_s=max(took), cpu_s=self.server.process.cpu() - cpu,
        )

    async def politely(self, times):
        return [await self.polite() for _ in range(times)]

    async def resets(self):
        """Number of resets sent on one connection, and the GOAWAY reason."""
        reader, writer = await self.connect()
        writer.write(PREFACE + h2(4, 0, 0))
        first = await asyncio.wait_for(reader.readexactly(9), 5)
        # :method POST, :scheme http, :path /graphql and a token, so that the request is expensive.
        block = b"\x83\x86" + literal(4, "/graphql") + literal(1, "x")
        block += literal(0, "Bearer " + self.person.token, "authorization")
        sent = 0
        answer = asyncio.create_task(goaway_of(reader, int.from_bytes(first[:3], "big")))
        for number in range(1, 40_001, 2):
            if answer.done() or writer.is_closing():
                break
            writer.write(h2(1, 4, number, block) + h2(3, 0, number, struct.pack("!I", 8)))
            sent += 1
            if sent % 50 == 0:
                try:
                    await writer.drain()
                except OSError:
                    break
                # Yield to the other clients.
                await asyncio.sleep(0)
        try:
            goaway = await asyncio.wait_for(answer, 5)
        except (TimeoutError, OSError, EOFError):
            goaway = "none"
        writer.close()
        return sent, goaway

    async def disconnects(self):
        """Clients that disconnect in the middle of a mutation: it completes with its event, or not
        at all."""
        project = await self.person.project()
        chance, ledger = random.Random(3), Ledger()
        query = "mutation ($p: ID!, $t: String!) { createTask(input: { projectId: $p, title: $t }) { task { id } } }"
        total = 300 if self.rig.long else 100
        for number in range(total):
            body = {"query": query, "variables": {"p": project, "t": f"gone {number}"}}
            raw = request_bytes("POST", "/graphql", body, self.person.token)
            _, writer = await self.connect()
            cut = len(raw) if number % 2 else chance.randint(1, len(raw) - 1)
            writer.write(raw[:cut])
            await writer.drain()
            if number % 3 == 0:
                await asyncio.sleep(chance.random() * 0.005)
            # Close with RST instead of FIN.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            if cut < len(raw):
                ledger.refused.add(f"gone {number}")
        # Wait for writes in progress.
        await self.person.task(project, "last")
        await asyncio.sleep(1)
        tables = Tables(file=self.server.file)
        wrong = [line for line in contradictions(ledger, tables)]
        done = sum(title.startswith("gone") for _, title, _, _ in tables.tasks())
        for line in wrong[:5]:
            self.rig.note(line)
        self.rig.check("disconnects during a mutation", not wrong, clients=total, cut_short=len(ledger.refused), done=done)


async def greet(reader, writer, token):
    writer.write(
        b"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    one = Socket(reader, writer)
    one.send({"type": "connection_init", "payload": {"Authorization": f"Bearer {token}"}})
    await one.receive()
    return one


def h2(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(index, value, name=None):
    """An HPACK header field without indexing or Huffman coding."""

    def text(words):
        raw = words.encode()
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, out = len(raw) - 127, b"\x7f"
        while rest >= 128:
            out, rest = out + bytes([rest % 128 + 128]), rest // 128
        return out + bytes([rest]) + raw

    return bytes([index]) + (text(name) if name else b"") + text(value)


async def goaway_of(reader, rest):
    """Reads frames until GOAWAY and returns its reason."""
    await reader.readexactly(rest)
    while True:
        try:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        except (OSError, EOFError):
            return "closed"
        if head[3] == 7:
            return f"GOAWAY {int.from_bytes(payload[4:8], 'big')}"

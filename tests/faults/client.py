"""Minimal HTTP and WebSocket clients: they expose exactly what failed, and need little CPU."""

import asyncio
import base64
import contextlib
import json
import os
import struct
from dataclasses import dataclass, field

PASSWORD = "Correct-Horse-7"
JSON = "application/json"
GRAPHQL = "application/graphql-response+json"


class Broken(Exception):
    """No answer arrived. If `sent`, the request may or may not have been executed."""

    def __init__(self, why, sent):
        super().__init__(why)
        self.sent = sent


class Closed(Exception):
    """The server closed the socket with this code; 1006 without a close frame."""

    def __init__(self, code):
        super().__init__(str(code))
        self.code = code


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def data(self):
        return self.json.get("data")

    @property
    def retry_after(self):
        return self.headers.get("retry-after")

    @property
    def code(self):
        """The code of the (first) error, from GraphQL or a problem document; None without an
        error."""
        try:
            told = self.json
        except ValueError:
            return None
        errors = told.get("errors")
        if errors and "extensions" in errors[0]:
            return errors[0]["extensions"].get("code")
        return told.get("code")


async def read_head(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(head[0].split()[1]), headers


async def read_answer(reader):
    status, headers = await read_head(reader)
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(status, headers, body)


def request_bytes(method, path, body=None, token=None, accept=GRAPHQL, headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: fasttrack", f"Accept: {accept}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    content = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        lines += [f"Content-Type: {JSON}", f"Content-Length: {len(content)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


class Http:
    """A keep-alive connection that reconnects when needed. One request at a time."""

    def __init__(self, where):
        self.where = where if callable(where) else lambda: where
        self.reader = self.writer = None

    async def send(self, raw, patience=15):
        sent = False
        try:
            async with asyncio.timeout(patience):
                # A server may close an idle connection at any time; notice it before sending.
                if self.writer is None or self.reader.at_eof() or self.writer.is_closing():
                    self.close()
                    self.reader, self.writer = await asyncio.open_connection(*self.where())
                self.writer.write(raw)
                sent = True
                answer = await read_answer(self.reader)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Broken(f"{type(error).__name__} {error}", sent) from None
        except BaseException:
            self.close()
            raise
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    async def ask(self, method, path, body=None, token=None, accept=JSON, patience=15):
        return await self.send(request_bytes(method, path, body, token, accept), patience)

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


@dataclass
class Person:
    """A signed-in user with a connection of their own."""

    http: Http
    token: str
    refresh: str = ""
    name: str = ""
    id: str = ""
    extra: dict = field(default_factory=dict)

    @classmethod
    async def sign_up(cls, where, name):
        http = Http(where)
        body = {"email": f"{name}@example.org", "username": name, "password": PASSWORD}
        answer = await http.ask("POST", "/auth/register", body)
        if answer.status not in (201, 409):
            raise RuntimeError(f"sign-up: {answer.status} {answer.body[:200]}")
        http.close()
        return await cls.log_in(where, name)

    @classmethod
    async def log_in(cls, where, name):
        http = Http(where)
        answer = await http.ask("POST", "/auth/login", {"username": name, "password": PASSWORD})
        if answer.status != 200:
            raise RuntimeError(f"login: {answer.status} {answer.body[:200]}")
        tokens = answer.json
        return cls(http, tokens["access_token"], tokens["refresh_token"], name)

    def again(self, where=None):
        """The same user on another connection."""
        return Person(Http(where or self.http.where), self.token, self.refresh, self.name, self.id)

    async def ask(self, query, variables=None, patience=15, accept=GRAPHQL):
        body = {"query": query, "variables": variables or {}}
        return await self.http.ask("POST", "/graphql", body, self.token, accept, patience)

    async def data(self, query, variables=None, patience=15):
        """Sends an operation that must succeed and returns its data."""
        answer = await self.ask(query, variables, patience)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.body[:300]}")
        return answer.data

    async def project(self, name="Apollo"):
        query = "mutation ($name: String!) { createProject(input: { name: $name }) { project { id } } }"
        return (await self.data(query, {"name": name}))["createProject"]["project"]["id"]

    async def task(self, project, title="Fly"):
        query = "mutation ($p: ID!, $t: String!) { createTask(input: { projectId: $p, title: $t }) { task { id } } }"
        return (await self.data(query, {"p": project, "t": title}))["createTask"]["task"]["id"]

    async def cursor(self):
        """The current end of the event log, where a follower starts."""
        while True:
            answer = await self.ask("{ __typename }")
            sync = answer.json.get("extensions", {}).get("sync") if answer.status == 200 else None
            if sync:
                return sync["cursor"]
            await asyncio.sleep(0.05)

    async def log(self, after):
        """All events after a cursor, from the `events` query, as (id, kind) in order."""
        query = """query ($after: String) { events(first: 100, after: $after) {
            edges { cursor node { id __typename } } pageInfo { hasNextPage } } }"""
        found = []
        while True:
            page = (await self.data(query, {"after": after}))["events"]
            for edge in page["edges"]:
                found.append((edge["node"]["id"], edge["node"]["__typename"]))
                after = edge["cursor"]
            if not page["pageInfo"]["hasNextPage"]:
                return found


def frame(opcode, payload):
    """A client frame. The mask is all zeros, which is valid and needs no masking."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    else:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    return head + bytes(4) + payload


class Socket:
    """A graphql-transport-ws socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, address, token=None, patience=15):
        """Connects, sends connection_init and waits for the acknowledgment; without a token it only
        connects."""
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_connection(*address)
                key = base64.b64encode(os.urandom(16)).decode()
                writer.write(
                    f"GET /graphql HTTP/1.1\r\nHost: fasttrack\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                    f"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n".encode()
                )
                status, _ = await read_head(reader)
                if status != 101:
                    writer.close()
                    raise Broken(f"upgrade: {status}", True)
                socket = cls(reader, writer)
                if token:
                    socket.send({"type": "connection_init", "payload": {"Authorization": f"Bearer {token}"}})
                    while (await socket.receive())["type"] != "connection_ack":
                        pass
                return socket
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise Broken(f"{type(error).__name__} {error}", False) from None

    def send(self, message):
        self.writer.write(frame(1, json.dumps(message).encode()))

    def subscribe(self, query, variables=None, name="1"):
        self.send({"id": name, "type": "subscribe", "payload": {"query": query, "variables": variables or {}}})

    async def receive(self):
        """The next protocol message. Pings are answered automatically."""
        try:
            while True:
                first, second = await self.reader.readexactly(2)
                size = second & 127
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(size)
                opcode = first & 15
                if opcode == 8:
                    raise Closed(struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005)
                if opcode == 9:
                    self.writer.write(frame(10, payload))
                elif opcode == 1:
                    message = json.loads(payload)
                    if message["type"] != "ping":
                        return message
                    self.send({"type": "pong"})
        except (OSError, EOFError):
            raise Closed(1006) from None

    def close(self):
        with contextlib.suppress(RuntimeError):
            self.writer.close()

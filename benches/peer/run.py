#!/usr/bin/env python3
"""Runs the benchmark of task servers with fasttrack added.

    BENCH=<directory of the benchmark> benches/peer/run.py target/release/fasttrack [--sqlite FILE] [benchmark options]

The benchmark numbers its rows. Requests get fasttrack's ids instead, and responses are converted
back to numbers so that they can be compared. With --sqlite only fasttrack runs, on that file, which
is created and filled if missing.
"""
import base64
import hashlib
import hmac
import importlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), os.environ["BENCH"]]

import content  # noqa: E402

bench = importlib.import_module("bench")
pg = importlib.import_module("pg")

binary = str(pathlib.Path(sys.argv.pop(1)).resolve())
sqlite = None
if "--sqlite" in sys.argv:
    at = sys.argv.index("--sqlite")
    sqlite = str(pathlib.Path(sys.argv[at + 1]).resolve())
    del sys.argv[at:at + 2]

Peer = bench.Peer


class Args(bench.Args):
    """The arguments of a request, with ids instead of numbers for fasttrack."""

    def get(self, spec, peer):
        noun = spec[1:] if isinstance(spec, str) else ""
        if isinstance(peer, Fasttrack) and noun in ("task", "project", "user"):
            return content.global_id(noun, self.v[noun])
        if spec == "$priority":
            return {"todo": "LOW", "in_progress": "MEDIUM", "done": "HIGH"}[self.v["status"]]
        return super().get(spec, peer)


class Fasttrack(Peer):
    def __init__(self, path, port):
        super().__init__(HERE / "fasttrack.toml", port)
        if sqlite:
            self.db_url = f"sqlite://{sqlite}"
        self.tag = None
        self.forth, self.back = [], []
        self.comparing = self.is_live = False

    def fill(self, text):
        return super().fill(text.replace("{binary}", binary))

    def token(self, user):
        if user not in self._tok:
            key = lambda noun: str(content.key(noun, user))
            self._tok[user] = signed({"iss": "fasttrack", "aud": "fasttrack", "sub": key("user"),
                                      "sid": key("session"), "jti": key("session"), "iat": 1704067200,
                                      "nbf": 1704067200, "exp": 4102444800})
        return self._tok[user]

    def request(self, work, arguments):
        if work == "W4" and self.is_live:
            return super().request("change", arguments)
        if work == "W4" and not self.comparing:
            # A status changes one step at a time, and an update without a change writes nothing. So 200 tasks are moved
            # forward, one per request, and then back.
            if self.back:
                arguments.v["task"], arguments.v["status"] = self.back.pop(0), "todo"
            else:
                self.forth.append(arguments.v["task"])
                arguments.v["status"] = "in_progress"
                if len(self.forth) == 200:
                    self.back, self.forth = self.forth, []
        return super().request(work, arguments)

    def compare(self, arguments):
        """The response to W4, after moving the task to a status one step away from the wanted one."""
        steps, wanted = ["todo", "in_progress", "done"], arguments.v["status"]
        self.comparing = True
        for status in (*steps, *reversed(steps)):
            arguments.v["status"] = status
            self.call(self.request("W4", arguments))
        for status in steps:
            arguments.v["status"] = status
            answer = answers(self, "W4", arguments)
            if status == wanted:
                self.comparing = False
                return answer

    def start(self):
        if not getattr(self, "is_filled", False):
            fill(self)
            self.is_filled = True
        super().start()

    def cursor(self, position):
        if position <= 0:
            return None
        if self.tag is None:
            request = super().request("W5", Args(random.Random(1)))
            status, body = self.call(request)
            answer = json.loads(body)
            end = answer["data"]["tasks"]["pageInfo"]["endCursor"]
            self.tag = base64.urlsafe_b64decode(end + "=" * (-len(end) % 4))[:4]
        made = content.micros("2024-02-01T00:00:00") + position * 1_000_000
        place = self.tag + content.key("task", position).bytes + b"t" + made.to_bytes(8, "big")
        return base64.urlsafe_b64encode(place).rstrip(b"=").decode()


def signed(claims):
    """An access token (RFC 9068)."""
    encoded = [bench.b64u(json.dumps(part).encode()) for part in ({"typ": "at+jwt", "alg": "HS256"}, claims)]
    text = ".".join(encoded)
    return text + "." + bench.b64u(hmac.new(bench.SECRET.encode(), text.encode(), hashlib.sha256).digest())


def fill(peer):
    environment = peer.env()
    if not sqlite:
        name = peer.c["database"]
        if not pg.psql(f"select 1 from pg_database where datname = '{name}'", db="postgres"):
            pg.psql(f'create database "{name}"', db="postgres")
    subprocess.run([binary, "migrate"], env=environment, check=True, stderr=subprocess.DEVNULL)
    wanted = content.SIZES[size][2]
    if sqlite:
        import sqlite3
        with sqlite3.connect(sqlite) as db:
            have = db.execute("select count(*) from tasks").fetchone()[0]
    else:
        have = int(pg.psql("select count(*) from tasks", db=name))
    if have == wanted:
        return
    if have:
        sys.exit(f"the database has {have} tasks, not {wanted}: drop it first")
    print(f"loading {wanted} tasks", flush=True)
    content.load(peer.db_url, size)


def numbered(value, key=""):
    """Replaces ids by the numbers from which they are derived."""
    if isinstance(value, list):
        return [numbered(item) for item in value]
    if isinstance(value, dict):
        return {key: numbered(item, key) for key, item in value.items()}
    return content.number_of(value) if key == "id" and isinstance(value, str) else value


answers, dig = bench.answers, bench.dig


def dig_numbered(answer, path):
    return dig(numbered(answer) if current.startswith("fasttrack") else answer, path)


def answers_of(peer, work, arguments):
    global current
    current = peer.name
    return peer.compare(arguments) if work == "W4" and current.startswith("fasttrack") else answers(peer, work, arguments)


def live(peer, *rest):
    """W6 with changes of the priority. The benchmark changes the status, but not always by one step or to a new value,
    for which fasttrack emits no event."""
    peer.is_live = True
    return ws_run(peer, *rest)


def warmed(peer, requests, *rest):
    """Uses other priorities in the warm-up of W6 than in the measurement, so that each measured update is a change."""
    if getattr(peer, "is_live", False):
        file = pathlib.Path(requests)
        file.write_text(re.sub("LOW|MEDIUM|HIGH", "URGENT", file.read_text()))
    return drive(peer, requests, *rest)


ws_run, drive = bench.ws_run, bench.drive
bench.Args, bench.ws_run, bench.drive = Args, live, warmed
current = ""
bench.dig, bench.answers = dig_numbered, answers_of
bench.Peer = lambda path, port: (Fasttrack if path.stem == "fasttrack" else Peer)(path, port)
size = sys.argv[sys.argv.index("--size") + 1] if "--size" in sys.argv else "1M"
if "--peers" not in sys.argv:
    names = ["fasttrack"] if sqlite else ["limit", "fasttrack", "asyncgraphql", "asyncgraphql-smallbuf"]
    sys.argv += ["--peers", ",".join(names)]
bench.main()

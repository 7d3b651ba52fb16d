"""Writers that record each outcome, followers that resume, and the check that both agree with the
database."""

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from client import Broken, Closed, Http, Person, Socket

TASK_CREATED, TASK_UPDATED, STATUS_CHANGED, COMMENT_ADDED = "1", "2", "6", "7"
STATUS = ["TODO", "IN_PROGRESS", "DONE"]
STORED = {"Todo": "0", "InProgress": "1", "Done": "2"}
CREATE = """mutation ($p: ID!, $t: String!, $due: DateTime) {
  createTask(input: { projectId: $p, title: $t, dueAt: $due }) { task { id title } userErrors { code } } }"""
COMMENT = """mutation ($id: ID!, $b: String!) {
  addComment(input: { taskId: $id, body: $b }) { comment { id body } userErrors { code } } }"""
# Each answer contains the mark of its write, so that a trace of sent bytes shows what was
# acknowledged. Changes title and status together: two events in one transaction, so that a partial
# write would show.
CHANGE = """mutation ($id: ID!, $t: String!, $s: TaskStatus!) {
  updateTask(input: { id: $id, title: $t, status: $s }) { task { version title } userErrors { code } } }"""
EVENTS = "subscription ($after: String) { events(after: $after) { __typename id cursor } }"


@dataclass
class Ledger:
    """The outcome of each write, by its mark."""

    acknowledged: set = field(default_factory=set)
    refused: set = field(default_factory=set)
    unknown: set = field(default_factory=set)
    revoked: list = field(default_factory=list)
    # (start, duration in seconds, status or 0, code, retry_after) of every request.
    requests: list = field(default_factory=list)

    def since(self, moment):
        return [request for request in self.requests if request[0] >= moment]

    def outcomes(self, since=0.0):
        return dict(Counter(f"{status} {code or ''}".strip() for _, _, status, code, _ in self.since(since)))


class Load:
    """Writers and followers on one account that owns one project."""

    def __init__(self, owner, project, where, followers=0, writers=4, patience=15, pause=0.0):
        self.owner, self.project, self.where = owner, project, where
        self.ledger, self.marks = Ledger(), itertools.count()
        self.up, self.stopping = asyncio.Event(), False
        self.up.set()
        self.patience, self.pause = patience, pause
        self.writers = [lambda number=number: self.write(number) for number in range(writers)]
        self.followers = [Follower(where, owner.token) for _ in range(followers)]
        self.tasks = []

    @classmethod
    async def prepare(cls, where, name="ada", **options):
        address = where() if callable(where) else where
        owner = await Person.sign_up(address, name)
        project = await owner.project()
        await owner.task(project)
        return cls(owner, project, where if callable(where) else lambda: where, **options)

    async def begin(self):
        start = await self.owner.cursor()
        self.start = start
        for follower in self.followers:
            follower.cursor = start
            self.tasks.append(asyncio.create_task(follower.run()))
        self.tasks += [asyncio.create_task(writer()) for writer in self.writers]

    async def acknowledged(self, more, within=60):
        """Waits until `more` further writes are acknowledged, at most `within` seconds."""
        until, goal = time.monotonic() + within, len(self.ledger.acknowledged) + more
        while len(self.ledger.acknowledged) < goal:
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(self.ledger.acknowledged)} of {goal} writes within {within} s")
            await asyncio.sleep(0.005)

    async def quiet(self):
        """Lets the writers finish their current request and stop. Followers continue."""
        self.stopping = True
        self.up.set()
        writing = self.tasks[len(self.followers):]
        await asyncio.gather(*writing)

    async def caught_up(self, log, within=30):
        """Waits until every follower has received the last event, then stops them. Returns the
        seconds it took."""
        begun, last = time.monotonic(), log[-1][0] if log else None
        while not all(last is None or last in follower.known for follower in self.followers):
            if time.monotonic() - begun > within:
                break
            await asyncio.sleep(0.02)
        took = time.monotonic() - begun
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return took

    async def ask(self, person, mark, query, variables):
        """Sends a write and records its outcome. Returns the object, or None if refused or
        unknown."""
        begun = time.monotonic()
        try:
            answer = await person.ask(query, variables, self.patience)
        except Broken as broken:
            self.ledger.requests.append((begun, time.monotonic() - begun, 0, "BROKEN" if broken.sent else "UNREACHABLE", None))
            (self.ledger.unknown if broken.sent else self.ledger.refused).add(mark)
            await self.up.wait()
            await asyncio.sleep(0.02)
            return None
        code = answer.code
        self.ledger.requests.append((begun, time.monotonic() - begun, answer.status, code, answer.retry_after))
        if code is not None:
            # The outage may have struck after the commit, so after 503 the outcome is unknown.
            later = code in ("SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR")
            (self.ledger.unknown if later else self.ledger.refused).add(mark)
            await asyncio.sleep(0.05)
            return None
        (payload,) = answer.data.values()
        if payload["userErrors"]:
            self.ledger.refused.add(mark)
            return None
        self.ledger.acknowledged.add(mark)
        return next(value for name, value in payload.items() if name != "userErrors")

    async def write(self, number):
        person = self.owner.again(self.where)
        task, status = None, 0
        while not self.stopping:
            turn = next(self.marks)
            mark = f"{number}-{turn}"
            if task is None:
                made = await self.ask(person, mark, CREATE, {"p": self.project, "t": mark})
                task, status = (made or {}).get("id"), 0
            elif turn % 8 == 0:
                # Must be refused, and leave no trace.
                past = {"p": self.project, "t": mark, "due": "2001-01-01T00:00:00Z"}
                await self.ask(person, mark, CREATE, past)
            elif turn % 8 == 1:
                task = None
            elif turn % 2:
                await self.ask(person, mark, COMMENT, {"id": task, "b": mark})
            else:
                goal = 1 if status != 1 else 2 * (turn // 2 % 2)
                if await self.ask(person, mark, CHANGE, {"id": task, "t": mark, "s": STATUS[goal]}) is None:
                    # Its state is unknown now: abandon it.
                    task = None
                else:
                    status = goal
            if self.pause:
                await asyncio.sleep(self.pause)
        person.http.close()

    async def log_out(self):
        """Logs in and out repeatedly. Sessions whose logout was acknowledged must stay ended."""
        while not self.stopping:
            try:
                guest = await Person.log_in(self.where(), self.owner.name)
                http = Http(self.where)
                answer = await http.ask("POST", "/auth/logout", token=guest.token)
                if answer.status == 204:
                    self.ledger.revoked.append((guest.token, guest.refresh))
            except (Broken, RuntimeError):
                await asyncio.sleep(0.05)
                await self.up.wait()
            await asyncio.sleep(0.02)


class Follower:
    """A subscriber that resumes from its last cursor after every break."""

    def __init__(self, where, token):
        self.where, self.token = where, token
        self.cursor, self.seen, self.known = None, [], set()
        self.breaks, self.closed = 0, Counter()

    async def run(self):
        while True:
            try:
                await self.follow()
            except Closed as closed:
                self.closed[closed.code] += 1
            except Broken:
                pass
            self.breaks += 1
            await asyncio.sleep(0.1)

    async def follow(self):
        socket = await Socket.open(self.where(), self.token)
        try:
            socket.subscribe(EVENTS, {"after": self.cursor})
            while True:
                message = await socket.receive()
                if message["type"] != "next" or message["payload"].get("errors"):
                    raise Closed(message["type"])
                event = message["payload"]["data"]["events"]
                self.seen.append(event["id"])
                self.known.add(event["id"])
                self.cursor = event["cursor"]
        finally:
            socket.close()


def missed(load, log):
    """Number of followers that did not receive every event of the log exactly once, in order."""
    ids = [identity for identity, _ in log]
    return sum(follower.seen != ids for follower in load.followers)


def contradictions(ledger, tables):
    """Contradictions between the database and the recorded outcomes, or within the database; empty
    if it is consistent."""
    found = []
    tasks, comments, events = tables.tasks(), tables.comments(), tables.events()
    written, steps, created, added = set(), {}, Counter(), Counter()
    # The text of a comment is stored only in its row, not in its event.
    bodies = {comment: body for comment, _, body in comments}
    for kind, task, comment, data in events:
        event = json.loads(data)
        if kind == TASK_CREATED:
            created[task] += 1
        elif kind == TASK_UPDATED:
            titles = [(c["from"], c["to"]) for c in event["changes"] if c["field"] == "title"]
            steps.setdefault(task, {}).setdefault(kind, []).extend(titles)
            written.update(title for pair in titles for title in pair)
        elif kind == STATUS_CHANGED:
            status = tuple(STORED[word] for word in event["status"])
            steps.setdefault(task, {}).setdefault(kind, []).append(status)
        elif kind == COMMENT_ADDED:
            added[comment] += 1
            written.add(bodies.get(comment))
    for task, title, status, version in tasks:
        if created.pop(task, 0) != 1:
            found.append(f"task {title} does not have exactly one creation event")
        for kind, now in ((TASK_UPDATED, title), (STATUS_CHANGED, status)):
            taken = steps.get(task, {}).get(kind, [])
            if len(taken) != int(version) - 1:
                found.append(f"task {title} is at version {version}, but its events of kind {kind} disagree")
            elif any(before[1] != after[0] for before, after in zip(taken, taken[1:])):
                found.append(f"events of kind {kind} about task {title} do not follow each other")
            elif taken and taken[-1][1] != now:
                found.append(f"task {title} differs from its last event")
        # The creation event refers to the task's row.
        titles = steps.get(task, {}).get(TASK_UPDATED)
        written.add(titles[0][0] if titles else title)
    found += [f"event for the missing task {task}" for task in created]
    for comment, _, body in comments:
        if added.pop(comment, 0) != 1:
            found.append(f"comment {body} does not have exactly one event")
    found += [f"event for the missing comment {comment}" for comment in added]
    rows = {title for _, title, _, _ in tasks} | {body for _, _, body in comments}
    found += [f"{mark} was acknowledged but is missing" for mark in ledger.acknowledged - written]
    found += [f"{mark} was refused but exists" for mark in ledger.refused & (written | rows)]
    return found


async def verified(load, tables, within=30):
    """Stops a load; returns its contradictions and figures."""
    await load.quiet()
    log = await load.owner.log(load.start)
    late = await load.caught_up(log, within)
    wrong = await asyncio.to_thread(contradictions, load.ledger, tables)
    wrong += [f"{count} followers did not receive the log exactly" for count in [missed(load, log)] if count]
    figures = {
        "acknowledged": len(load.ledger.acknowledged),
        "refused": len(load.ledger.refused),
        "unknown": len(load.ledger.unknown),
        "events": len(log),
        "followers": len(load.followers),
        "resumed": sum(follower.breaks for follower in load.followers),
        "caught_up_s": late,
    }
    return wrong, figures


def told(rig, name, wrong, figures):
    """Reports the check that there are no contradictions, with the first few of them."""
    for line in wrong[:5]:
        rig.note(line)
    return rig.check(name, not wrong, **figures, **({"contradictions": len(wrong)} if wrong else {}))

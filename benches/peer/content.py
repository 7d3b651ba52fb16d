"""Loads the benchmark's data into fasttrack's tables on PostgreSQL or SQLite, with the same rows as for other servers.

    python3 content.py sqlite:///tmp/bench.db 1M          # into a database created with `fasttrack migrate`

Ids are derived from the benchmark's row numbers. The users that send requests (1 to 100) have the
role ADMIN, because on the other servers every user sees everything.
"""
import base64
import datetime
import sqlite3
import subprocess
import sys
import uuid

SIZES = {"10k": (1000, 1000, 10_000), "1M": (1000, 1000, 1_000_000), "10M": (1000, 1000, 10_000_000)}
NOUNS = {"user": 1, "session": 2, "project": 3, "task": 5, "comment": 6}
CALLERS = 100
PRIME = 2147483647


def key(noun, number):
    return uuid.UUID(int=(NOUNS[noun] << 96) | (0x7000 << 64) | (0x8000 << 48) | number)


def global_id(noun, number):
    return base64.urlsafe_b64encode(bytes([NOUNS[noun]]) + key(noun, number).bytes).rstrip(b"=").decode()


def number_of(global_id):
    return int.from_bytes(base64.urlsafe_b64decode(global_id + "=" * (-len(global_id) % 4))[-6:], "big")


def micros(text):
    return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp()) * 1_000_000


def mixed(number, salt):
    return (((number * 48271 + salt * 7919) % PRIME) * 69621) % PRIME


def owner(project):
    return 1 + (project - 1) % CALLERS


def users(count):
    begin = micros("2024-01-01T00:00:00")
    for n in range(1, count + 1):
        at = ("at", begin + n * 60_000_000)
        email, name = f"user{n}@example.test", f"User {n}"
        active = n <= CALLERS or n % 37 != 0
        yield (key("user", n), email, email, f"user{n}", f"user{n}", name, f"user{n}\n{name.lower()}\n{email}", "!",
               int(n <= CALLERS), active, True, at, at)


def sessions(count):
    at, end = ("at", micros("2024-01-01T00:00:00")), ("at", micros("2100-01-01T00:00:00"))
    for n in range(1, min(CALLERS, count) + 1):
        yield key("session", n), key("user", n), b"\0" * 16, 1, at, at, at, end


def projects(count):
    begin = micros("2024-01-02T00:00:00")
    for n in range(1, count + 1):
        at = ("at", begin + n * 60_000_000)
        name, description = f"Project {n}", f"Deliverables and notes of project number {n}."
        yield (key("project", n), key("user", owner(n)), name, name.lower(), description,
               f"{name}\n{description}".lower(), int(n % 20 == 0), 1, at, at)


def tasks(count, user_count, project_count):
    begin, due_begin = micros("2024-02-01T00:00:00"), micros("2025-01-01T00:00:00")
    for n in range(1, count + 1):
        r1, r2, r3 = mixed(n, 1), mixed(n, 2) + n // 3, mixed(n, 3) + n // 11
        title = f"Task {n}: check item {r1 % 9973}"
        description = (f'Description of task {n}. Look at the "{r2 % 977}" part, compare it with the plan, '
                       "and write down what is still open.")
        project, status, at = 1 + r3 % project_count, r1 % 3, ("at", begin + n * 1_000_000)
        assignee = None if r1 % 10 == 0 else key("user", 1 + (r2 // 7) % user_count)
        due = ("at", due_begin + r1 % 31536000 * 1_000_000) if r2 % 4 == 0 else None
        yield (key("task", n), key("project", project), key("user", owner(project)), key("user", owner(project)),
               assignee, title, description, f"{title}\n{description}".lower(), status, r2 % 3, due,
               at if status == 2 else None, 1, at, at)


def comments(count, user_count, task_count):
    begin = micros("2024-03-01T00:00:00")
    for n in range(1, count + 1):
        r1, r2 = mixed(n, 4), mixed(n, 5)
        if n % 2 == 0:
            task = 1 + (r1 + n // 5) % task_count
        else:
            task = 1 + 10 * ((r1 + n // 13) % max(1, task_count // 10)) % task_count
        at = ("at", begin + n * 1_000_000)
        body = f"Comment {n}: I looked at this again and it needs another round before it is done."
        yield key("comment", n), key("task", task), key("user", 1 + (r2 + n // 17) % user_count), body, False, at, at


def tables(size):
    u, p, t = SIZES[size]
    yield "users", ("id email email_key username username_key display_name search password_hash role is_active "
                    "email_verified created_at updated_at"), users(u)
    yield "sessions", "id user_id seed generation rotated_at created_at last_used_at expires_at", sessions(u)
    yield "projects", "id owner_id name name_key description search status version created_at updated_at", projects(p)
    yield "tasks", ("id project_id owner_id creator_id assignee_id title description search status priority due_at "
                    "completed_at version created_at updated_at"), tasks(t, u, p)
    yield "comments", "id task_id author_id body is_edited created_at updated_at", comments(2 * t, u, t)


def for_sqlite(value):
    match value:
        case uuid.UUID():
            return value.bytes
        case ("at", moment):
            return moment
        case _:
            return value


def for_postgres(value):
    match value:
        case None:
            return r"\N"
        case ("at", moment):
            return f"{datetime.datetime.fromtimestamp(moment // 1_000_000, datetime.UTC):%Y-%m-%d %H:%M:%S+00}"
        case bytes():
            return r"\\x" + value.hex()
        case bool():
            return "tf"[not value]
        case _:
            return str(value).replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n")


def into_sqlite(path, size):
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("pragma synchronous = off")
        db.execute("pragma cache_size = -1000000")
        # Recreated at the end: indexes built at once are as dense as PostgreSQL's.
        indexes = db.execute("select name, sql from sqlite_master where type = 'index' and sql is not null"
                             " and tbl_name in ('tasks', 'comments')").fetchall()
        db.execute("begin")
        for name, _ in indexes:
            db.execute(f"drop index {name}")
        for table, columns, rows in tables(size):
            columns = columns.split()
            insert = f"insert into {table} ({', '.join(columns)}) values ({', '.join('?' * len(columns))})"
            db.executemany(insert, ([for_sqlite(value) for value in row] for row in rows))
        for _, statement in indexes:
            db.execute(statement)
        db.execute("commit")
        db.execute("analyze")
        db.execute("pragma wal_checkpoint(truncate)")


def into_postgres(url, size):
    psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url]
    # Recreated at the end, as the benchmark does for its own tables.
    indexes = subprocess.run([*psql, "-c", "select indexname, indexdef from pg_indexes where tablename in ('tasks', 'comments')"
                              " and indexname not like '%pkey'"], check=True, capture_output=True, text=True).stdout
    indexes = [line.split("|") for line in indexes.splitlines()]
    for name, _ in indexes:
        subprocess.run([*psql, "-c", f"drop index {name}"], check=True)
    for table, columns, rows in tables(size):
        copy = f"copy {table} ({', '.join(columns.split())}) from stdin"
        loading = subprocess.Popen([*psql, "-c", copy], stdin=subprocess.PIPE, text=True)
        for row in rows:
            loading.stdin.write("\t".join(map(for_postgres, row)) + "\n")
        loading.stdin.close()
        if loading.wait():
            sys.exit(f"{table} could not be loaded")
    for _, statement in indexes:
        subprocess.run([*psql, "-c", f"set maintenance_work_mem = '512MB'; {statement}"], check=True)
    subprocess.run([*psql, "-c", "vacuum (analyze, freeze)"], check=True)


def load(url, size):
    if url.startswith("sqlite://"):
        into_sqlite(url.removeprefix("sqlite://"), size)
    else:
        into_postgres(url, size)


if __name__ == "__main__":
    load(sys.argv[1], sys.argv[2])

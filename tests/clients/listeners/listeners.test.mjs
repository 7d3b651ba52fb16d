// The listeners in examples/: the server is killed and restarted while they run, and each event is
// printed exactly once.
//   FASTTRACK          path of the server binary
//   FASTTRACK_LISTENER path of the Rust listener
//   PYTHON             path of a Python with gql installed
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Person } from '../person.mjs';

const { FASTTRACK, FASTTRACK_LISTENER, PYTHON = 'python3' } = process.env;
const examples = new URL('../../../examples/', import.meta.url).pathname;

/** A dedicated server that can be killed and restarted. */
async function server(t) {
  const cwd = await mkdtemp(join(tmpdir(), 'fasttrack-'));
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  await once(probe.close(), 'close');
  const api = `http://127.0.0.1:${port}`;
  const env = {
    ...process.env,
    DATABASE_URL: 'sqlite://log.db',
    LISTEN_ADDR: `127.0.0.1:${port}`,
    RATE_LIMIT_ENABLED: 'false',
    RUST_LOG: 'warn',
  };
  let child;
  const start = async () => {
    child = spawn(FASTTRACK, { cwd, env, stdio: ['ignore', 'ignore', 'inherit'] });
    while (!(await fetch(`${api}/readyz`).catch(() => undefined))?.ok) await sleep(50);
  };
  const kill = async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
  t.after(async () => {
    await kill();
    await rm(cwd, { recursive: true });
  });
  await start();
  return { api, start, kill };
}

/** Starts a listener and collects the events it prints. */
async function listener(t, program, args) {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill());
  assert.match(String(await once(child.stderr, 'data')), /listening/);
  child.stderr.resume();
  const ids = [];
  const lines = createInterface(child.stdout);
  lines.on('line', (line) => ids.push(JSON.parse(line).id));
  const until = async (count) => {
    while (ids.length < count) await once(lines, 'line');
  };
  return { ids, until };
}

const log = async (person) =>
  (await person.ask('{ events(first: 100) { nodes { id } } }')).events.nodes.map(({ id }) => id);

test('a listener prints every event exactly once while the server restarts', async (t) => {
  const { api, start, kill } = await server(t);
  const person = await Person.signUp(api);
  const account = [api, person.username, Person.PASSWORD];
  const listeners = await Promise.all([
    listener(t, FASTTRACK_LISTENER, account),
    listener(t, PYTHON, [join(examples, 'listener.py'), ...account]),
  ]);
  const heard = async () => {
    const events = await log(person);
    await Promise.all(listeners.map(({ until }) => until(events.length)));
    for (const { ids } of listeners) assert.deepEqual(ids, events);
    return events.length;
  };
  const task = await person.task();
  let count = await heard();
  for (const [first, second] of [['IN_PROGRESS', 'DONE'], ['IN_PROGRESS', 'TODO']]) {
    // One event delivered live, and others while the listener is disconnected.
    await person.comment(task, 'as it happens');
    await heard();
    await person.move(task, first);
    await kill();
    await start();
    await person.move(task, second);
    count = await heard();
  }
  assert.ok(count >= 7);
  await sleep(500);
  for (const { ids } of listeners) assert.equal(ids.length, count);
});

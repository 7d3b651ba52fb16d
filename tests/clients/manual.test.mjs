// The documentation: client snippets must match their files, links must resolve, and every command
// is run verbatim in an empty directory. Commands that are not run here are listed in ELSEWHERE
// with the reason; an unknown command fails.
//   FASTTRACK          path of the server binary
//   TEST_DATABASE_URL  a PostgreSQL server where databases can be created, for the commands that need one; needs psql
// The JavaScript client in the README uses the packages that tests/clients/run installs with `npm
// ci`.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, readFile, readdir, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const root = new URL('../../', import.meta.url);
const pages = ['README.md', 'CONTRIBUTING.md'];
for (const entry of await readdir(new URL('docs', root), { recursive: true })) {
  if (entry.endsWith('.md')) pages.push(`docs/${entry}`);
}
const texts = new Map(await Promise.all(pages.map(async (page) => [page, await readFile(new URL(page, root), 'utf8')])));
const manual = [...texts.values()].join('\n');
const { FASTTRACK, TEST_DATABASE_URL } = process.env;

test('the snippets in clients.md match their files', async () => {
  const clients = texts.get('docs/guide/clients.md');
  const shown = [...clients.matchAll(/\(\.\.\/\.\.\/(tests\/clients\/[^)]+)\)\):\n\n```\w+\n(.*?)```/gs)];
  assert.equal(shown.length, clients.match(/^```\w+$/gm).length);
  for (const [, path, text] of shown) {
    assert.ok((await readFile(new URL(path, root), 'utf8')).includes(text), `${path} differs from the snippet in clients.md`);
  }
});

test('every relative link in the documentation resolves', async () => {
  const anchor = (title) => title.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-');
  const anchors = (text) => [...text.matchAll(/^#+ (.*)$/gm)].map(([, title]) => anchor(title));
  const broken = [];
  let links = 0;
  for (const [page, text] of texts) {
    for (const [, link] of text.matchAll(/\]\((?!https?:|mailto:)([^)\s]+)\)/g)) {
      links += 1;
      const [path, fragment] = link.split('#');
      const target = path ? join(dirname(page), path) : page;
      const exists = await access(new URL(target, root)).then(() => true, () => false);
      const known = texts.has(target) ? anchors(texts.get(target)) : undefined;
      if (!exists || (fragment && !known?.includes(fragment))) broken.push(`${page}: ${link}`);
    }
  }
  assert.ok(links > 50, `${links}`);
  assert.deepEqual(broken, []);
});

// --- The commands --------------------------------------------------------------------------------------------------

/** Commands that are not run here, with the reason. */
const ELSEWHERE = {
  'cargo test': 'runs in CI',
  'TEST_DATABASE_URL=postgres://postgres@127.0.0.1/postgres cargo test': 'runs in CI',
  'TEST_REDIS_URL=redis://127.0.0.1 cargo test --lib limits': 'runs in CI',
  'tests/clients/run target/debug/fasttrack': 'runs this file',
  'tests/faults/run target/release/fasttrack': 'CI runs most of its parts',
  '.ci/run': 'is CI itself',
  '(cd playground && npm ci && npm run build) && cargo run --release': 'CI builds the playground',
  'cargo bench --bench feed': 'takes minutes and needs an idle machine',
  'cargo bench --bench feed -- 2000': 'the same',
  'cargo bench --bench requests': 'the same',
  'docker build -t fasttrack .': 'needs a container engine and network access',
  'docker run -p 127.0.0.1:8000:8000 -v fasttrack:/data fasttrack': 'the same',
  'docker run --rm -it -v fasttrack:/data fasttrack user create --email you@example.org --username you --admin': 'the same',
  "sudo sh -c 'cd /var/lib/fasttrack && fasttrack user create --email you@example.org --username you --admin'":
    'needs systemd',
  "sudo sh -c 'cd /var/lib/fasttrack && fasttrack backup /root/copy.db'": 'the same',
  'systemctl stop fasttrack': 'the same',
  'cd /var/lib/fasttrack': 'the same',
  'rm -f fasttrack.db-wal fasttrack.db-shm': 'the same',
  'cp /root/copy.db fasttrack.db': 'the same',
  'cp /root/fasttrack.secrets fasttrack.secrets': 'the same',
  'chown --reference=. fasttrack.db fasttrack.secrets': 'the same',
  'systemctl start fasttrack': 'the same',
  'npm install graphql graphql-ws ws': 'the test packages are used instead',
};

/** Every shell code block: its heading and text. */
function blocks() {
  const found = [];
  let heading = '';
  let block;
  for (const line of manual.split('\n')) {
    if (block && line === '```') {
      if (/^(sh|bash|shell|console)$/.test(block.language)) found.push({ heading, text: block.lines.join('\n') });
      block = undefined;
    } else if (block) {
      block.lines.push(line);
    } else if (line.startsWith('```')) {
      block = { language: line.slice(3).trim(), lines: [] };
    } else if (/^#+ /.test(line)) {
      heading = line.replace(/^#+ /, '');
    }
  }
  return found;
}

/** The blocks that no test has taken yet, in document order. */
const left = blocks();

function take(heading) {
  const at = left.findIndex((block) => block.heading === heading);
  assert.notEqual(at, -1, `no (further) command block under “${heading}”`);
  return left.splice(at, 1)[0].text;
}

function isElsewhere(text) {
  const unknown = text.split('\n').filter((line) => !(line.split(/ +# /)[0] in ELSEWHERE));
  assert.deepEqual(unknown, [], 'run these, or list them in ELSEWHERE');
}

// --norc, because with a socket as standard input bash assumes a remote shell and reads ~/.bashrc.
const run = promisify(execFile);

/** Waits for a condition. Fails with the program's output if it exits first, or after 30 seconds. */
async function until(so, child, printed) {
  const late = Date.now() + 30_000;
  let ended = null;
  while (!(await so())) {
    assert.equal(ended, null, `the program exited (${ended}): ${printed()}`);
    assert.ok(Date.now() < late, `timeout after 30 s: ${printed()}`);
    // The last output may arrive after the exit, so check once more.
    ended = child.exitCode ?? child.signalCode;
    await sleep(20);
  }
}

/** An empty directory with `fasttrack`, and a `cargo` whose `run --release` starts it, on the PATH. */
async function place(t) {
  const cwd = await realpath(await mkdtemp(join(tmpdir(), 'fasttrack-')));
  t.after(() => rm(cwd, { recursive: true, force: true }));
  const bin = join(cwd, '.bin');
  await mkdir(bin);
  await symlink(await realpath(FASTTRACK), join(bin, 'fasttrack'));
  const cargo = '#!/bin/sh\n[ "$1 $2" = "run --release" ] || exit 64\nshift 2\n[ "$1" != -- ] || shift\nexec fasttrack "$@"\n';
  await writeFile(join(bin, 'cargo'), cargo, { mode: 0o755 });
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  await once(probe.close(), 'close');
  // Port 8000 of the documentation is replaced by a free port.
  const api = `http://127.0.0.1:${port}`;
  const here = (text) => text.replaceAll('http://127.0.0.1:8000', api);
  const { PATH, HOME, LANG, TMPDIR } = process.env;
  const env = { PATH: `${bin}:${PATH}`, HOME, LANG, TMPDIR, API: api, LISTEN_ADDR: `127.0.0.1:${port}` };
  return {
    api,
    cwd,
    env,
    here,
    /** Runs a script and returns its output. */
    sh: async (text, more) => {
      const options = { cwd, env: { ...env, ...more }, timeout: 60_000 };
      return (await run('bash', ['--norc', '-euo', 'pipefail', '-c', here(text)], options)).stdout;
    },
    /** Runs a script with the given standard input. */
    tell: async (text, input) => {
      const running = run('bash', ['--norc', '-euo', 'pipefail', '-c', here(text)], { cwd, env, timeout: 60_000 });
      running.child.stdin.end(input);
      return (await running).stdout;
    },
    /** Starts a server and waits until it is ready. */
    serve: async (text, more) => {
      const child = spawn('bash', ['--norc', '-c', `exec env ${here(text)}`], { cwd, env: { ...env, ...more } });
      let [told, logged] = ['', ''];
      child.stdout.on('data', (data) => (told += data));
      child.stderr.on('data', (data) => (logged += data));
      const ended = once(child, 'exit');
      t.after(() => child.exitCode === null && child.kill('SIGKILL'));
      const ready = () => fetch(`${api}/readyz`, { signal: AbortSignal.timeout(5000) }).catch(() => undefined);
      await until(async () => (await ready())?.ok, child, () => logged);
      return {
        told: () => told,
        tells: (pattern) => until(() => pattern.test(told), child, () => told + logged),
        end: async () => {
          child.kill('SIGTERM');
          assert.deepEqual(await ended, [0, null], logged);
        },
      };
    },
  };
}

/** Creates an empty PostgreSQL database and returns its URL. */
async function database(t) {
  const url = new URL(TEST_DATABASE_URL);
  const name = `readme_${process.pid}_${Date.now()}`;
  const psql = (statement) => run('psql', ['-w', '-q', TEST_DATABASE_URL, '-c', statement], { timeout: 30_000 });
  await psql(`CREATE DATABASE ${name}`);
  t.after(() => psql(`DROP DATABASE ${name} WITH (FORCE)`));
  url.pathname = `/${name}`;
  return url.href;
}

const needs = (name) => ({ skip: process.env[name] ? false : `${name} is not set`, timeout: 120_000 });

test('Start, First query, First live event, Server-sent events, A client, Health, Backup', needs('FASTTRACK'), async (t) => {
  const at = await place(t);
  const start = take('Start');
  isElsewhere(take('Start')); // the tests
  isElsewhere(take('Start')); // GraphiQL
  const server = await at.serve(start);
  // The README shows the actual output.
  const shown = /^```text\n(fasttrack .*?)```/ms.exec(manual)[1];
  const plain = (text) => text.replaceAll(at.api, 'http://127.0.0.1:8000').replace(/fasttrack \d+\.\d+\.\d+/, 'fasttrack X');
  await server.tells(/--admin/);
  assert.ok(plain(server.told()).includes(plain(shown)), server.told());

  let script = '';
  for (let count = 0; count < 4; count++) script += `${at.here(take('First query'))}\n`;
  const lines = (text) => text.trim().split('\n').map((line) => JSON.parse(line));
  const keep = 'declare -p API TOKEN TASK >.told; declare -f gql >>.told';
  const first = lines(await at.sh(`{ ${script}\n${keep}; } | jq -c .`));
  assert.equal(first[0].username, 'ada');
  assert.equal(first[1].data.viewer.username, 'ada');
  assert.deepEqual(first[2].data.projects.nodes[0].tasks.nodes, [
    { title: 'Write the welcome page', status: 'TODO', assignee: { username: 'ada' } },
  ]);
  const again = (text) => `. ./.told\n${text}`;

  // The stream and the README's client listen while the task is started.
  const stream = spawn('bash', ['--norc', '-c', `. ./.told; exec ${take('Server-sent events')}`], at);
  t.after(() => stream.kill());
  let streamed = '';
  for (const out of [stream.stdout, stream.stderr]) out.on('data', (data) => (streamed += data));
  const [install, follow] = take('A client').split('\n');
  isElsewhere(install);
  const packages = await realpath(new URL('node_modules', import.meta.url)).catch(() => undefined);
  assert.ok(packages, 'packages not installed: run `npm ci` in tests/clients');
  await symlink(packages, join(at.cwd, 'node_modules'));
  await writeFile(join(at.cwd, 'follow.mjs'), /^```js\n(\/\/ follow\.mjs\n.*?)```/ms.exec(manual)[1]);
  const follower = spawn('bash', ['--norc', '-c', `exec ${follow}`], at);
  t.after(() => follower.kill());
  let followed = '';
  for (const out of [follower.stdout, follower.stderr]) out.on('data', (data) => (followed += data));
  await until(() => followed.includes('Write the welcome page'), follower, () => followed);
  await sleep(300);
  const [moved] = lines(await at.sh(again(take('First live event'))));
  assert.deepEqual(moved.data.updateTask, { task: { status: 'IN_PROGRESS', version: 2 }, userErrors: [] });
  await until(() => /StatusChangedEvent ada/.test(followed), follower, () => followed);
  await until(() => /event: next\n.*StatusChangedEvent/s.test(streamed), stream, () => streamed);

  assert.match(await at.sh(take('Health')), /ok.*"ready":true/s);
  assert.match(await at.sh(take('Backup')), /Created and verified copy\.db/);
  await server.end();
});

test('every command in commands.md works', needs('FASTTRACK'), async (t) => {
  const at = await place(t);
  const section = texts.get('docs/reference/commands.md');
  const cells = [...section.matchAll(/^\| (`fasttrack.*?) \| /gm)].map(([, cell]) => cell);
  const password = 'Correct-Horse-7\n';
  const commands = {
    '`fasttrack`': async () => (await at.serve('fasttrack')).end(),
    '`fasttrack user create --email … --username … [--display-name …] [--admin] [--password-stdin]`': async () => {
      const words = '--email eve@example.org --username eve --display-name Eve --admin --password-stdin';
      assert.match(await at.tell(`fasttrack user create ${words}`, password), /Created eve with role Admin/);
      await at.tell('fasttrack user create --email ada@example.org --username ada --password-stdin', password);
    },
    '`fasttrack user list`': async () => assert.match(await at.sh('fasttrack user list'), /^eve\t.*\tAdmin\t/m),
    '`fasttrack user set-role <username> admin` or `user`': async () => {
      assert.match(await at.sh('fasttrack user set-role ada admin; fasttrack user set-role ada user'), /Admin.*User/s);
    },
    '`fasttrack user disable <username>`, `enable`': async () => {
      assert.match(await at.sh('fasttrack user disable ada; fasttrack user enable ada'), /disabled.*again|disabled/s);
    },
    '`fasttrack user reset-password <username> [--password-stdin]`': async () => {
      await at.tell('fasttrack user reset-password ada --password-stdin', 'Another-Horse-8\n');
    },
    '`fasttrack migrate [--down]`': async () => {
      assert.match(await at.sh('fasttrack migrate --down; fasttrack migrate'), /Reverted.*Applied 1 migrations/s);
    },
    '`fasttrack config check`': async () => assert.match(await at.sh('fasttrack config check'), /DATABASE_URL/),
    '`fasttrack doctor`': async () => assert.match(await at.sh('fasttrack doctor'), /^ok /m),
    '`fasttrack backup <file>`': async () => assert.match(await at.sh('fasttrack backup kept.db'), /Created and verified/),
    '`fasttrack move --from sqlite://… --to postgres://…`': async () => {}, // Tested below with PostgreSQL.
    '`fasttrack schema`, `fasttrack openapi`': async () => {
      assert.equal(await at.sh('fasttrack schema'), await readFile(new URL('schema.graphql', root), 'utf8'));
      assert.equal(JSON.parse(await at.sh('fasttrack openapi')).openapi, '3.1.0');
    },
    '`fasttrack health`': async () => {
      const server = await at.serve('fasttrack');
      await at.sh('fasttrack health');
      await server.end();
      await assert.rejects(at.sh('fasttrack health'));
    },
    '`fasttrack demo`': async () => {
      const empty = await place(t);
      assert.match(await empty.sh('cargo run --release -- demo'), /Log in as alice/);
    },
  };
  assert.deepEqual(cells.toSorted(), Object.keys(commands).toSorted());
  for (const [command, tried] of Object.entries(commands)) await t.test(command, tried);
});

test('Metrics, Traces, When something is wrong', needs('FASTTRACK'), async (t) => {
  const at = await place(t);
  const server = await at.serve(take('Metrics').replace(':9464', ':0'));
  await server.tells(/Metrics +http:\S+/);
  const url = /Metrics +(http:\S+)/.exec(server.told())[1];
  assert.match(await at.sh(take('Metrics').replace('http://127.0.0.1:9464/metrics', url)), /^fasttrack_build_info/m);
  assert.match(await at.sh(take('When something is wrong')), /LISTEN_ADDR.*and is ready/s);
  await server.end();

  let path;
  const collector = createHttpServer((request, answer) => {
    path = request.url;
    request.resume().on('end', () => answer.end());
  }).listen(0, '127.0.0.1');
  await once(collector, 'listening');
  t.after(() => collector.close().closeAllConnections());
  const traces = take('Traces').replace(':4318', `:${collector.address().port}`).replace('ARG=0.1', 'ARG=1');
  const traced = await at.serve(traces);
  await at.sh('curl -fsS $API/livez');
  await traced.end();
  assert.equal(path, '/v1/traces');
});

test('One machine with PostgreSQL, From SQLite to PostgreSQL', needs('FASTTRACK'), async (t) => {
  const url = 'postgres://fasttrack:password@127.0.0.1/fasttrack';
  const [start, move] = ['One machine with PostgreSQL', 'From SQLite to PostgreSQL'].map(take);
  assert.ok(start.includes(url) && move.includes(url));
  if (!TEST_DATABASE_URL) return t.skip('TEST_DATABASE_URL is not set');
  const at = await place(t);
  await at.sh('fasttrack demo');
  const target = await database(t);
  await at.sh(move.replace(url, target));
  const server = await at.serve(start.replace(url, target));
  await server.tells(/PostgreSQL/);
  await server.end();
});

test('every command in the documentation is run or listed in ELSEWHERE', async (t) => {
  if (!FASTTRACK) return t.skip('FASTTRACK is not set');
  for (const heading of ['One binary', 'One binary', 'Restore', 'Performance', 'Tests']) isElsewhere(take(heading));
  assert.deepEqual(left, [], 'run these, or list them in ELSEWHERE (after a failed test some remain)');
});

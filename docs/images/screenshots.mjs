// Makes the pictures in the README, with demo data in a temporary directory, in light and dark mode:
//
//   (cd playground && npm ci && npm run build) && cargo build
//   (cd examples/board && npm ci && npm run build)
//   node docs/images/screenshots.mjs target/debug/fasttrack
//
// The browser library is the one of examples/board. CHROMIUM is the browser, /usr/bin/chromium by
// default. The pictures use the system's fonts.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const board = fileURLToPath(new URL('../../examples/board/', import.meta.url));
const require = createRequire(board);
const { chromium } = require('playwright-core');
const { preview } = require('vite');

// --- The server ----------------------------------------------------------------------------------

const program = resolve(process.argv[2] ?? 'target/debug/fasttrack');
const cwd = mkdtempSync(join(tmpdir(), 'fasttrack-'));
const probe = createServer().listen(0, '127.0.0.1');
await once(probe, 'listening');
const { port } = probe.address();
await once(probe.close(), 'close');
const api = `http://127.0.0.1:${port}`;
const env = { ...process.env, DATABASE_URL: 'sqlite://demo.db', LISTEN_ADDR: `127.0.0.1:${port}`, RUST_LOG: 'warn' };
execFileSync(program, ['demo'], { cwd, env, stdio: 'pipe' });
const server = spawn(program, { cwd, env, stdio: ['ignore', 'ignore', 'pipe'] });
let log = '';
server.stderr.on('data', (data) => (log += data));

async function post(path, body, token) {
  const response = await fetch(api + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  assert.ok(response.ok && !answer.errors, `${path}: ${JSON.stringify(answer)}`);
  return answer;
}

/** The password of all demo users. */
const password = 'Demo-Password-1';

/** Logs in as Bob, who works on a task of Alice's project, and returns a function that changes its status. */
async function bob() {
  const { access_token: token } = await post('/auth/login', { username: 'bob', password });
  const query = '{ tasks(first: 100) { nodes { id title } } }';
  const { nodes } = (await post('/graphql', { query }, token)).data.tasks;
  const { id } = nodes.find((task) => task.title === 'Redirect the old addresses');
  return async (status) => {
    const query = `mutation ($input: UpdateTaskInput!) { updateTask(input: $input) { userErrors { message } } }`;
    const { data } = await post('/graphql', { query, variables: { input: { id, status } } }, token);
    assert.deepEqual(data.updateTask.userErrors, []);
  };
}

// --- The pages -----------------------------------------------------------------------------------

let browser;
let site;

const subscription = `subscription LiveEvents {
  events {
    __typename
    cursor
    occurredAt
    actor {
      displayName
    }
    ... on StatusChangedEvent {
      task {
        title
        project {
          name
        }
      }
      from
      to
    }
    ... on CommentAddedEvent {
      task {
        title
      }
      comment {
        body
      }
    }
  }
}`;

/** Opens a page and signs in as Alice, who owns a project. */
async function open(url) {
  const page = await browser.newPage({
    viewport: { width: 1280, height: 800 },
    locale: 'en-US',
    reducedMotion: 'reduce',
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
  await page.goto(url);
  await page.getByLabel('username').fill('alice');
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in', exact: true }).click();
  await page.getByRole('button', { name: 'Sign out' }).waitFor();
  return {
    page,
    picture: async (name) => {
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        await page.mouse.move(0, 0);
        const path = fileURLToPath(new URL(`${name}-${colorScheme}.png`, import.meta.url));
        await page.screenshot({ path, animations: 'disabled' });
      }
      assert.deepEqual(faults, []);
    },
  };
}

/** GraphiQL, with the event of a task that Bob starts. */
async function graphiql() {
  const { page, picture } = await open(`${api}/graphiql/`);
  await page.locator('.graphiql-query-editor .view-lines').click();
  await page.keyboard.press('ControlOrMeta+A');
  // Pasted, because the editor indents and closes braces during typing.
  await page.evaluate((text) => navigator.clipboard.writeText(text), subscription);
  await page.keyboard.press('ControlOrMeta+V');
  await page.getByRole('button', { name: 'Hide Examples' }).click();
  await page.getByRole('button', { name: 'Hide editor tools' }).click();
  await page.locator('.graphiql-execute-button').click();

  const setStatus = await bob();
  const event = page.locator('.graphiql-response', { hasText: '"IN_PROGRESS"' });
  let arrived = false;
  // The stream does not contain events from before the server accepted the subscription.
  for (let attempts = 0; !arrived; attempts++) {
    assert.ok(attempts < 10, 'no event arrived');
    await setStatus('TODO');
    await setStatus('IN_PROGRESS');
    arrived = await event.waitFor({ timeout: 1000 }).then(() => true, () => false);
  }
  await picture('graphiql');
}

/** The board, with the task that Bob has started. */
async function taskBoard() {
  process.env.FASTTRACK_URL = api; // read by its vite.config.ts
  site = await preview({ root: board, preview: { port: 0, host: '127.0.0.1' }, logLevel: 'silent' });
  const { page, picture } = await open(site.resolvedUrls.local[0]);
  // Larger, because the README shows the picture at about two thirds of its size.
  await page.evaluate(() => (document.documentElement.style.zoom = '1.25'));
  await page.locator('.card').first().waitFor();
  await page.getByText('live', { exact: true }).waitFor();
  await picture('board');
}

try {
  while (!(await fetch(`${api}/readyz`).catch(() => undefined))?.ok) {
    assert.equal(server.exitCode, null, log);
    await sleep(50);
  }
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
  });
  await graphiql();
  await taskBoard();
} finally {
  await browser?.close();
  await site?.close();
  if (server.kill('SIGKILL')) await once(server, 'exit');
  rmSync(cwd, { recursive: true, force: true });
}

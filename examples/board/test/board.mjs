// Tests the built board in Chromium against the server at FASTTRACK_URL, with a new user.
//   CHROMIUM     the browser, /usr/bin/chromium by default
//   SCREENSHOTS  a directory for screenshots in light and dark mode, none by default
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';
import { preview } from 'vite';

const server = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8000';
const username = `board-${Date.now().toString(36)}`;
const password = 'Correct-Horse-9';

// --- Another client that works on the same tasks -------------------------------------------------

async function post(path, body, token) {
  const answer = await fetch(server + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  });
  const json = await answer.json();
  assert.ok(answer.ok && !json.errors, `${path}: ${JSON.stringify(json)}`);
  return json;
}

await post('/auth/register', { username, email: `${username}@example.org`, password, display_name: 'Ada' });
const { access_token: token } = await post('/auth/login', { username, password });

/** Executes a mutation with one root field. */
async function mutate(field, type, result, input) {
  const query = `mutation ($input: ${type}!) { answer: ${field}(input: $input) { ${result} userErrors { message } } }`;
  const { data } = await post('/graphql', { query, variables: { input } }, token);
  assert.deepEqual(data.answer.userErrors, []);
  return data.answer;
}

const { viewer } = (await post('/graphql', { query: '{ viewer { id } }' }, token)).data;
const { project } = await mutate('createProject', 'CreateProjectInput', 'project { id }', { name: 'Website relaunch' });
const create = async (title, fields) => {
  const input = { projectId: project.id, title, ...fields };
  return (await mutate('createTask', 'CreateTaskInput', 'task { id }', input)).task.id;
};
const update = (id, changes) => mutate('updateTask', 'UpdateTaskInput', 'task { id }', { id, ...changes });

const welcome = await create('Write the welcome page', { priority: 'HIGH', assigneeId: viewer.id });
const logo = await create('Choose a logo', { dueAt: new Date(Date.now() + 5 * 86_400_000).toISOString() });
const links = await create('Check all links', { priority: 'URGENT' });
await update(links, { status: 'IN_PROGRESS' });

// --- The page ------------------------------------------------------------------------------------

const site = await preview({ preview: { port: 0, host: '127.0.0.1' }, logLevel: 'warn' });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
});
const page = await browser.newPage({ viewport: { width: 1100, height: 640 } });
page.setDefaultTimeout(15_000);

const faults = [];
page.on('pageerror', (error) => faults.push(error.message));
// Routed sockets forward messages with a delay, possibly when they are already closing. The page is
// not at fault.
const late = /^WebSocket is already in CLOSING or CLOSED state/;
page.on('console', (message) => {
  if (['error', 'warning'].includes(message.type()) && !late.test(message.text())) faults.push(message.text());
});
const queries = [];
page.on('request', (request) => request.url().includes('/graphql') && queries.push(request));
// Routes the page's sockets through this script, which can close them.
const sockets = [];
await page.routeWebSocket(/\/graphql$/, (socket) => {
  socket.connectToServer();
  sockets.push(socket);
});

const step = (text) => console.log(`- ${text}`);
const column = (name) => page.getByRole('region', { name });
const card = (name, title) => column(name).locator('.card', { hasText: title });
const move = (title, to) => page.locator('.card', { hasText: title }).getByRole('button', { name: `Move to ${to}` }).click();
const picture = async (name) => {
  if (!process.env.SCREENSHOTS) return;
  await page.waitForTimeout(1300); // the highlight animation
  for (const colorScheme of ['dark', 'light']) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}-${colorScheme}.png` });
  }
};

try {
  step('signing in shows the tasks in their columns');
  await page.goto(site.resolvedUrls.local[0]);
  await picture('sign-in');
  await page.getByLabel('Username').fill(username);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await card('To do', 'Write the welcome page').waitFor();
  await card('To do', 'Choose a logo').waitFor();
  await card('In progress', 'Check all links').waitFor();
  await page.getByText('live', { exact: true }).waitFor();
  await picture('board');

  step('changes by others appear without a request');
  const before = queries.length;
  await update(welcome, { status: 'IN_PROGRESS' });
  await card('In progress', 'Write the welcome page').waitFor();
  await update(welcome, { title: 'Write the front page' });
  await card('In progress', 'Write the front page').waitFor();
  assert.equal(queries.length, before);

  step('changes during a connection loss appear after the reconnect');
  await sockets.at(-1).close({ code: 1012 });
  await page.getByText('connecting', { exact: true }).waitFor();
  await update(logo, { status: 'IN_PROGRESS' });
  await card('In progress', 'Choose a logo').waitFor();
  assert.equal(queries.length, before);
  assert.equal(sockets.length, 2);

  step('created and deleted tasks change the list');
  const fresh = await create('Ask for feedback');
  await card('To do', 'Ask for feedback').waitFor();
  await mutate('deleteTask', 'DeleteTaskInput', 'deletedTaskId', { id: fresh });
  await card('To do', 'Ask for feedback').waitFor({ state: 'detached' });

  step('a move is shown before the server responds');
  let release;
  const held = new Promise((resolve) => (release = resolve));
  await page.route('**/graphql', async (route) => {
    if (route.request().method() === 'POST') await held;
    await route.continue();
  });
  await move('Check all links', 'Done');
  await card('Done', 'Check all links').waitFor();
  const status = async () => (await post('/graphql', { query: `{ task(id: "${links}") { status } }` }, token)).data.task;
  assert.deepEqual(await status(), { status: 'IN_PROGRESS' });
  const answered = page.waitForResponse((answer) => answer.request().method() === 'POST');
  release();
  await answered;
  assert.deepEqual(await status(), { status: 'DONE' });
  await card('Done', 'Check all links').waitFor();
  await page.unroute('**/graphql');

  step('a move that the server refuses is rolled back');
  await page.route('**/graphql', async (route) => {
    // A concurrent change: the version in the page is outdated.
    if (route.request().method() === 'POST') await update(logo, { title: 'Choose a new logo' });
    await route.continue();
  });
  await move('Choose a logo', 'Done');
  await page.getByRole('alert').filter({ hasText: /\w/ }).waitFor();
  await card('In progress', 'Choose a new logo').waitFor();
  await page.unroute('**/graphql');
  await picture('refused');

  step('the session survives a reload and ends at sign-out');
  await page.reload();
  await card('Done', 'Check all links').waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByLabel('Password').waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);

  assert.deepEqual(faults, []);
  console.log('The board works.');
} finally {
  for (const fault of faults) console.error(fault);
  await browser.close();
  await site.close();
}

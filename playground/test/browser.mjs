// End-to-end test of the playground of a running server, as a new user sees it.
//   FASTTRACK_URL  the server (default http://127.0.0.1:8080)
//   SCREENSHOTS    a folder for screenshots in light and dark mode (default none)
//   CHROMIUM       the browser (default /usr/bin/chromium)
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { chromium } from 'playwright-core';

const server = new URL(process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8080').origin;
const pictures = process.env.SCREENSHOTS;
const newcomer = `pg${Date.now().toString(36)}`;
const email = `${newcomer}@example.com`;
const password = 'Correct-Horse-Battery-7';

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
});
const context = await browser.newContext({
  viewport: { width: 1440, height: 900 },
  colorScheme: 'light',
});
const page = await context.newPage();
page.setDefaultTimeout(20_000);

const faults = [];
const refreshes = [];
// The browser logs a rejected request as an error. Requests to these paths are rejected on purpose.
const refusals = new Set();

page.on('pageerror', (error) => faults.push(`uncaught: ${error.message}`));
page.on('console', (message) => {
  const path = new URL(message.location().url || server).pathname;
  const wanted = message.text().includes('status of 401') && refusals.has(path);
  const noWorker = message.text().includes('web worker');
  if ((message.type() === 'error' && !wanted) || noWorker) faults.push(message.text());
});
context.on('request', (request) => {
  const url = new URL(request.url());
  if (url.pathname === '/auth/refresh') refreshes.push(request);
  if (url.origin !== server && !['data:', 'blob:'].includes(url.protocol)) {
    faults.push(`request to ${url}`);
  }
});
page.on('websocket', (socket) => {
  if (new URL(socket.url()).host !== new URL(server).host) faults.push(`socket to ${socket.url()}`);
});

const step = (text) => console.log(`- ${text}`);
const button = (name) => page.getByRole('button', { name, exact: true });
const run = () => page.locator('.graphiql-execute-button').click();
const openExample = (title) => page.locator('.examples button', { hasText: title }).click();

const shows = (selector, text) =>
  page.waitForFunction(
    ([selector, text]) =>
      document.querySelector(selector)?.textContent.replace(/\u00a0/g, ' ').includes(text),
    [selector, text],
  );
const answers = (text) => shows('.graphiql-response', text);

async function picture(name) {
  if (!pictures) return;
  mkdirSync(pictures, { recursive: true });
  for (const colorScheme of ['dark', 'light']) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: `${pictures}/${name}-${colorScheme}.png` });
  }
}

async function post(path, body, token) {
  const response = await fetch(server + path, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(token && { authorization: `Bearer ${token}` }),
    },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  assert.ok(response.ok && !answer.errors, `${path}: ${JSON.stringify(answer)}`);
  return answer;
}

try {
  step('a wrong password is explained');
  await page.goto(`${server}/graphiql/`);
  refusals.add('/auth/login');
  await page.getByLabel('E-mail or username').fill(email);
  await page.getByLabel('Password').fill('not the password');
  await button('Sign in').click();
  await page.waitForFunction(() => document.querySelector('[role=alert]').textContent);
  refusals.delete('/auth/login');
  await shows('.view-lines', 'query FirstSteps');
  await picture('sign-in');

  step('creating an account signs the user in');
  await button('Create account').click();
  await page.getByLabel('E-mail').fill(email);
  await page.getByLabel('Username').fill(newcomer);
  await page.getByLabel('Display name').fill('Newcomer');
  await page.getByLabel('Password').fill(password);
  await button('Create account').click();
  await shows('.account', `Signed in as ${newcomer}`);

  step('a query runs');
  await run();
  await answers(`"username": "${newcomer}"`);

  step('the editor validates against the schema');
  await button('New tab').click();
  await page.locator('.graphiql-query-editor .view-lines').click();
  await page.keyboard.type('{ nothing');
  await page.locator('.graphiql-query-editor .squiggly-error').first().waitFor();

  step('a rejected token is replaced once, and the session survives a reload');
  await page.evaluate(() => {
    const session = JSON.parse(sessionStorage.getItem('fasttrack.session'));
    sessionStorage.setItem('fasttrack.session', JSON.stringify({ ...session, accessToken: 'x' }));
  });
  refusals.add('/graphql');
  await page.reload();
  await openExample('First steps');
  await shows('.view-lines', 'query FirstSteps');
  await run();
  await answers(`"username": "${newcomer}"`);
  refusals.delete('/graphql');
  assert.equal(refreshes.length, 1, 'one refresh for all rejected requests');

  step('live events arrive');
  const { access_token: token } = await post('/auth/login', { email, password });
  const mutate = async (query, input) => {
    const { data } = await post('/graphql', { query, variables: { input } }, token);
    const [payload] = Object.values(data);
    assert.deepEqual(payload.userErrors, []);
    return payload;
  };
  const { project } = await mutate(
    'mutation($input: CreateProjectInput!) { createProject(input: $input) { project { id } userErrors { message } } }',
    { name: 'Website relaunch' },
  );
  const { task } = await mutate(
    'mutation($input: CreateTaskInput!) { createTask(input: $input) { task { id } userErrors { message } } }',
    { projectId: project.id, title: 'Write the welcome page' },
  );
  await openExample('Live events');
  await shows('.view-lines', 'subscription LiveEvents');
  await run();
  let arrived = false;
  const arrival = answers('"body": "Nice work"').then(() => {
    arrived = true;
  });
  // The stream does not contain events from before the server accepted the subscription.
  while (!arrived) {
    await mutate(
      'mutation($input: AddCommentInput!) { addComment(input: $input) { userErrors { message } } }',
      { taskId: task.id, body: 'Nice work' },
    );
    await Promise.race([arrival, new Promise((resolve) => setTimeout(resolve, 1000))]);
  }
  await picture('live');

  step('signing out ends the session and its streams');
  await button('Sign out').click();
  await button('Sign in').waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  await page.locator('.graphiql-execute-button[aria-label^="Execute"]').waitFor();

  step('signing in by username works');
  await page.getByLabel('E-mail or username').fill(newcomer);
  await page.getByLabel('Password').fill(password);
  await page.keyboard.press('Enter');
  await shows('.account', `Signed in as ${newcomer}`);
  await openExample('Nested read');
  await shows('.view-lines', 'query NestedRead');
  await run();
  await answers('"name": "Website relaunch"');
  await picture('query');

  assert.equal(faults.length, 0, 'no errors and no requests to other hosts');
  console.log('The playground works.');
} finally {
  for (const fault of faults) console.error(fault);
  await browser.close();
}

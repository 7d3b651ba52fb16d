// GraphQL over SSE in distinct connections mode, tested with graphql-sse and with fetch.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createClient } from 'graphql-sse';
import { Person, comments, commentUntil, graphql } from '../person.mjs';

test('queries, mutations and subscriptions are answered with streams', async () => {
  const person = await Person.signUp();
  const task = await person.task();
  const client = createClient({ url: graphql, headers: { authorization: person.authorization }, retryAttempts: 0 });
  for await (const { data } of client.iterate({ query: '{ viewer { username } }' })) {
    assert.equal(data.viewer.username, person.username);
  }
  const create = 'mutation { createProject(input: { name: "Once" }) { project { name } } }';
  for await (const { data } of client.iterate({ query: create })) {
    assert.equal(data.createProject.project.name, 'Once');
  }
  for await (const { data } of client.iterate({ query: '{ projects { nodes { name } } }' })) {
    assert.equal(data.projects.nodes.filter(({ name }) => name === 'Once').length, 1);
  }
  const events = client.iterate({ query: comments });
  const first = events.next();
  const written = await commentUntil(first, person, task);
  assert.ok(Number((await first).value.data.commentAdded.comment.body) < written);
  await events.return();
});

/** Opens a stream and returns its body. */
async function open(person, query, headers = {}) {
  const answer = await fetch(graphql, {
    method: 'POST',
    headers: {
      accept: 'text/event-stream',
      'content-type': 'application/json',
      authorization: person.authorization,
      ...headers,
    },
    body: JSON.stringify({ query }),
  });
  assert.equal(answer.status, 200);
  return answer.body;
}

/** Parses the events of a body. */
async function* read(body) {
  let text = '';
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const lines = text.slice(0, end).split('\n').filter((line) => !line.startsWith(':'));
      text = text.slice(end + 2);
      if (lines.length === 0) continue;
      yield Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]));
    }
  }
}

/** Returns the first event of a stream and closes it. */
async function first(body) {
  const events = read(body);
  const { value } = await events.next();
  await events.return();
  return value;
}

test('a stream resumes after Last-Event-ID', async () => {
  const person = await Person.signUp();
  const task = await person.task();
  const query = 'subscription { commentAdded { comment { body } } }';
  const begun = first(await open(person, query));
  const written = await commentUntil(begun, person, task);
  const value = await begun;
  assert.equal(value.event, 'next');
  const told = JSON.parse(value.data);
  const body = Number(told.data.commentAdded.comment.body);
  assert.deepEqual(told, { data: { commentAdded: { comment: { body: `${body}` } } } });
  await person.comment(task, `${written}`);
  const resumed = await first(await open(person, query, { 'last-event-id': value.id }));
  assert.equal(JSON.parse(resumed.data).data.commentAdded.comment.body, `${body + 1}`);
  const nonsense = 'subscription { commentAdded(after: "nonsense") { comment { body } } }';
  const again = await first(await open(person, nonsense, { 'last-event-id': value.id }));
  assert.equal(again.id, resumed.id);
});

test('a stream ends with its session', async () => {
  const person = await Person.signUp();
  const events = read(await open(person, comments));
  await person.logOut();
  assert.equal((await events.next()).done, true);
});

test('errors before execution have their own HTTP status', async () => {
  const ask = (query, headers) =>
    fetch(graphql, {
      method: 'POST',
      headers: { accept: 'text/event-stream', 'content-type': 'application/json', ...headers },
      body: JSON.stringify({ query }),
    });
  assert.equal((await ask('{')).status, 400);
  assert.equal((await ask('{ __typename }', { authorization: 'Bearer nonsense' })).status, 401);
});

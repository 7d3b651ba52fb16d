// GraphQL over SSE in distinct connections mode, driven by graphql-sse and by fetch.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createClient } from 'graphql-sse';
import { Person, comments, graphql } from '../person.mjs';

const soon = () => new Promise((resolve) => setTimeout(resolve, 300));

test('queries and subscriptions answer with streams', async () => {
  const person = await Person.signUp();
  const task = await person.task();
  const client = createClient({ url: graphql, headers: { authorization: person.authorization }, retryAttempts: 0 });
  for await (const { data } of client.iterate({ query: '{ viewer { username } }' })) {
    assert.equal(data.viewer.username, person.username);
  }
  const events = client.iterate({ query: comments });
  const first = events.next();
  await soon();
  await person.comment(task, 'one');
  assert.equal((await first).value.data.commentAdded.comment.body, 'one');
  await events.return();
});

async function* stream(person, query, headers = {}) {
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
  let text = '';
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const lines = text.slice(0, end).split('\n').filter((line) => !line.startsWith(':'));
      text = text.slice(end + 2);
      if (lines.length === 0) continue;
      yield Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]));
    }
  }
}

/** The first event of a stream, which is left then. */
async function first(events) {
  const { value } = await events.next();
  await events.return();
  return value;
}

test('a stream goes on after the last event that was seen', async () => {
  const person = await Person.signUp();
  const task = await person.task();
  const query = 'subscription { commentAdded { comment { body } } }';
  const events = stream(person, query);
  const begun = first(events);
  await soon();
  await person.comment(task, 'one');
  const value = await begun;
  assert.equal(value.event, 'next');
  assert.deepEqual(JSON.parse(value.data), { data: { commentAdded: { comment: { body: 'one' } } } });
  await person.comment(task, 'two');
  const resumed = await first(stream(person, query, { 'last-event-id': value.id }));
  assert.equal(JSON.parse(resumed.data).data.commentAdded.comment.body, 'two');
  const written = 'subscription { commentAdded(after: "nonsense") { comment { body } } }';
  const again = await first(stream(person, written, { 'last-event-id': value.id }));
  assert.equal(again.id, resumed.id);
});

test('a stream ends with its session', async () => {
  const person = await Person.signUp();
  const events = stream(person, comments);
  const end = events.next();
  await soon();
  await person.logOut();
  assert.equal((await end).done, true);
});

test('what fails before execution has a status of its own', async () => {
  const ask = (query, headers) =>
    fetch(graphql, {
      method: 'POST',
      headers: { accept: 'text/event-stream', 'content-type': 'application/json', ...headers },
      body: JSON.stringify({ query }),
    });
  assert.equal((await ask('{')).status, 400);
  assert.equal((await ask('{ __typename }', { authorization: 'Bearer nonsense' })).status, 401);
});

// graphql-transport-ws, tested with its reference client and with raw frames.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';
import { Person, comments, commentUntil, graphql } from '../person.mjs';

const url = graphql.replace(/^http/, 'ws');

function client(person, options = {}) {
  return createClient({
    url,
    webSocketImpl: WebSocket,
    retryAttempts: 0,
    connectionParams: { Authorization: person.authorization },
    ...options,
  });
}

const once = async (iterable) => {
  for await (const answer of iterable) return answer;
};

/** A socket that sends raw messages. */
class Raw {
  constructor(protocols = 'graphql-transport-ws', options) {
    this.socket = new WebSocket(url, protocols, options);
    this.inbox = [];
    this.waiting = [];
    this.closed = new Promise((resolve) => {
      this.socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() }));
    });
    this.socket.on('message', (data) => {
      const message = JSON.parse(data);
      const next = this.waiting.shift();
      if (next) next(message);
      else this.inbox.push(message);
    });
    this.open = new Promise((resolve, reject) => {
      this.socket.on('open', resolve);
      this.socket.on('error', reject);
    });
    this.open.catch(() => {});
  }

  send(message) {
    this.socket.send(typeof message === 'string' ? message : JSON.stringify(message));
  }

  receive() {
    if (this.inbox.length) return Promise.resolve(this.inbox.shift());
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  async greet(person) {
    await this.open;
    this.send({ type: 'connection_init', payload: { Authorization: person.authorization } });
    assert.deepEqual(await this.receive(), { type: 'connection_ack' });
    return this;
  }
}

const subscribe = (id, query = 'subscription { events { id } }') => ({ type: 'subscribe', id, payload: { query } });

test('queries, mutations and subscriptions run on one socket', async () => {
  const person = await Person.signUp();
  const task = await person.task();
  const live = client(person);
  const query = await once(live.iterate({ query: '{ viewer { username } }' }));
  assert.equal(query.data.viewer.username, person.username);

  const events = live.iterate({ query: comments });
  const first = events.next();
  const written = await commentUntil(first, person, task);
  const { cursor, comment } = (await first).value.data.commentAdded;
  await events.return();

  await person.comment(task, `${written}`);
  const resumed = await once(live.iterate({ query: comments, variables: { after: cursor } }));
  assert.equal(resumed.data.commentAdded.comment.body, `${Number(comment.body) + 1}`);
  await live.dispose();
});

test('errors before execution are `error` messages, not results', async () => {
  const person = await Person.signUp();
  const raw = await new Raw().greet(person);
  for (const query of ['{', '{ nothing }', 'subscription { nothing }', 'subscription { events(after: "x") { id } }']) {
    raw.send(subscribe('1', query));
    const { type, id, payload } = await raw.receive();
    assert.deepEqual([type, id], ['error', '1']);
    assert.match(payload[0].extensions.code, /^[A-Z_]+$/);
    assert.ok(payload[0].extensions.requestId);
  }
  raw.send(subscribe('1', '{ __typename }'));
  assert.equal((await raw.receive()).payload.data.__typename, 'Query');
  assert.deepEqual(await raw.receive(), { type: 'complete', id: '1' });
  raw.socket.close();
});

test('a ping is answered', async () => {
  const raw = new Raw();
  await raw.open;
  raw.send({ type: 'ping' });
  assert.deepEqual(await raw.receive(), { type: 'pong' });
  raw.socket.close();
});

test('an invalid message closes the socket with 4400', async () => {
  const wrong = ['nonsense', '{"type":"next","id":"1"}', '{"type":"subscribe","id":"1"}', Buffer.from([1, 2, 3])];
  for (const message of wrong) {
    const raw = new Raw();
    await raw.open;
    raw.socket.send(message);
    assert.equal((await raw.closed).code, 4400);
  }
});

test('an operation before connection_init closes it with 4401', async () => {
  const raw = new Raw();
  await raw.open;
  raw.send(subscribe('1'));
  assert.equal((await raw.closed).code, 4401);
});

test('a missing or invalid token closes it with 4403', async () => {
  for (const payload of [undefined, { Authorization: 'Bearer nonsense' }, { Authorization: 7 }]) {
    const raw = new Raw();
    await raw.open;
    raw.send({ type: 'connection_init', payload });
    assert.equal((await raw.closed).code, 4403);
  }
});

test('an unknown subprotocol closes it with 4406', async () => {
  const raw = new Raw([]);
  assert.equal((await raw.closed).code, 4406);
});

test('without connection_init it is closed with 4408', async () => {
  const started = Date.now();
  const raw = new Raw();
  assert.equal((await raw.closed).code, 4408);
  assert.ok(Date.now() - started > 2_500);
});

test('a duplicate operation id closes it with 4409', async () => {
  const raw = await new Raw().greet(await Person.signUp());
  raw.send(subscribe('twice'));
  raw.send(subscribe('twice'));
  assert.deepEqual(await raw.closed, { code: 4409, reason: 'Subscriber for twice already exists' });
});

test('a second connection_init closes it with 4429', async () => {
  const raw = await new Raw().greet(await Person.signUp());
  raw.send({ type: 'connection_init' });
  assert.equal((await raw.closed).code, 4429);
});

test('a message of more than 64 KiB closes it with 1009', async () => {
  const raw = await new Raw().greet(await Person.signUp());
  raw.send(JSON.stringify({ type: 'ping', payload: { x: 'x'.repeat(65_536) } }));
  assert.equal((await raw.closed).code, 1009);
});

test('a cross-site page cannot open a socket', async () => {
  const raw = new Raw('graphql-transport-ws', { origin: 'https://evil.example' });
  await assert.rejects(raw.open, /403/);
});

test('the end of the session closes it with 4403', async () => {
  const person = await Person.signUp();
  const raw = await new Raw().greet(person);
  raw.send(subscribe('1'));
  await person.logOut();
  assert.equal((await raw.closed).code, 4403);
});

test('a ping accepts a fresh token of the same user, but not of another', async () => {
  const person = await Person.signUp();
  const raw = await new Raw().greet(person);
  await person.refresh();
  raw.send({ type: 'ping', payload: { Authorization: person.authorization } });
  assert.deepEqual(await raw.receive(), { type: 'pong' });
  const stranger = await Person.signUp();
  raw.send({ type: 'ping', payload: { Authorization: stranger.authorization } });
  assert.equal((await raw.closed).code, 4403);
});

test('a socket has at most 50 operations', async () => {
  const raw = await new Raw().greet(await Person.signUp());
  for (let number = 0; number < 51; number += 1) raw.send(subscribe(`${number}`));
  const { type, id, payload } = await raw.receive();
  assert.deepEqual([type, id, payload[0].extensions.code], ['error', '50', 'RATE_LIMITED']);
  raw.send({ type: 'complete', id: '0' });
  raw.send(subscribe('fits', '{ __typename }'));
  assert.equal((await raw.receive()).type, 'next');
  raw.socket.close();
});

test('a user has at most 20 sockets', async () => {
  const person = await Person.signUp();
  const sockets = await Promise.all(Array.from({ length: 20 }, () => new Raw().greet(person)));
  const one = new Raw();
  await one.open;
  one.send({ type: 'connection_init', payload: { Authorization: person.authorization } });
  assert.equal((await one.closed).code, 1013);
  sockets.pop().socket.close();
  // A slot is free again once the server has noticed the close.
  let code;
  do {
    const again = new Raw();
    ({ code } = await Promise.race([again.greet(person), again.closed]));
    if (code === undefined) sockets.push(again);
    else assert.equal(code, 1013);
  } while (code !== undefined);
  for (const { socket } of sockets) socket.close();
});

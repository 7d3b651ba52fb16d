// urql: pagination and optimistic writes with Graphcache, and a session that outlives its access
// token.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, fetchExchange } from '@urql/core';
import { minifyIntrospectionQuery } from '@urql/introspection';
import { getIntrospectionQuery } from 'graphql';
import { live } from '../live.mjs';
import { Person, api, graphql } from '../person.mjs';
import { EVENTS, MOVE, TASKS, statuses, titles, watch } from '../watch.mjs';
import { connect } from './client.mjs';

const schema = await introspect();

/** The server's introspection result, minified. */
async function introspect() {
  const answer = await fetch(graphql, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query: getIntrospectionQuery() }),
  });
  return minifyIntrospectionQuery((await answer.json()).data);
}

// Graphcache warns about objects without a key.
const warnings = [];
console.warn = (warning) => warnings.push(warning);
after(() => assert.deepEqual(warnings, []));

describe('urql', { concurrency: true }, () => {
  test('relayPagination merges pages into one list', async () => {
    const person = await Person.signUp();
    await person.tasks('one', 'two', 'three', 'four', 'five');
    const client = connect(api, person, live(api, person), schema);
    let page = await client.query(TASKS, {}).toPromise();
    while (page.data.tasks.pageInfo.hasNextPage) {
      page = await client.query(TASKS, { after: page.data.tasks.pageInfo.endCursor }).toPromise();
    }
    assert.deepEqual(titles(page.data), ['one', 'two', 'three', 'four', 'five']);
  });

  test('an optimistic write is shown at once and rolled back when it is refused', async (t) => {
    const person = await Person.signUp();
    const [id] = await person.tasks('Fuel');
    const client = connect(api, person, live(api, person), schema);
    const { shown, until } = watch(t, client.query(TASKS, {}));
    await until(() => true);
    for (const status of ['DONE', 'IN_PROGRESS']) {
      await client.mutation(MOVE, { input: { id, status } }).toPromise();
    }
    const steps = shown.map((data) => statuses(data)[0]).filter((status, at, all) => status !== all[at - 1]);
    assert.deepEqual(steps, ['TODO', 'DONE', 'TODO', 'IN_PROGRESS']);
  });

  test('live updates reach the cache and resume after a lost connection', async (t) => {
    const person = await Person.signUp();
    const [id] = await person.tasks('Fuel');
    const socket = live(api, person);
    const client = connect(api, person, socket, schema);
    const { until } = watch(t, client.query(TASKS, {}));
    const { shown } = watch(t, client.subscription(EVENTS, { after: await person.newest() }));
    await person.move(id, 'IN_PROGRESS');
    await until((data) => statuses(data)[0] === 'IN_PROGRESS');
    socket.terminate();
    await person.move(id, 'DONE');
    await until((data) => statuses(data)[0] === 'DONE');
    assert.deepEqual(shown.map(({ events }) => events.to), ['IN_PROGRESS', 'DONE']);
  });

  test('subscriptions also run over server-sent events', async (t) => {
    const person = await Person.signUp();
    const [id] = await person.tasks('one');
    const client = new Client({
      url: graphql,
      fetchOptions: () => ({ headers: { Authorization: person.authorization } }),
      fetchSubscriptions: true,
      exchanges: [fetchExchange],
    });
    const { until } = watch(t, client.subscription(EVENTS, { after: await person.newest() }));
    await person.move(id, 'IN_PROGRESS');
    await until(({ events }) => events.to === 'IN_PROGRESS');
  });

  // The shortest lifetime of an access token is a minute, which these tests wait for.
  test('a session outlives its access token, over HTTP', async (t) => {
    const person = await Person.signUp();
    await person.tasks('Fuel');
    const client = connect(api, person, live(api, person), schema);
    const ask = () => client.query(TASKS, {}, { requestPolicy: 'network-only' }).toPromise();
    assert.deepEqual(titles((await ask()).data), ['Fuel']);
    const { accessToken } = person;
    await sleep(person.expiresAt - Date.now() + 1000);
    await assert.rejects(person.ask('{ viewer { id } }'), /UNAUTHENTICATED/);
    const { data, error } = await ask();
    assert.equal(error, undefined);
    assert.deepEqual(titles(data), ['Fuel']);
    assert.notEqual(person.accessToken, accessToken);
  });

  test('a subscription outlives the access token it started with', async (t) => {
    const person = await Person.signUp();
    const [id] = await person.tasks('one');
    const client = connect(api, person, live(api, person), schema);
    const { shown, until } = watch(t, client.subscription(EVENTS, { after: await person.newest() }));
    await person.move(id, 'IN_PROGRESS');
    await until(({ events }) => events.to === 'IN_PROGRESS');
    const { accessToken } = person;
    await sleep(person.expiresAt - Date.now() + 1000);
    // The server has closed the socket, and the client reconnects with a refreshed token.
    const elsewhere = await person.elsewhere();
    await elsewhere.move(id, 'DONE');
    await until(({ events }) => events.to === 'DONE');
    assert.deepEqual(shown.map(({ events }) => events.to), ['IN_PROGRESS', 'DONE']);
    assert.notEqual(person.accessToken, accessToken);
  });
});

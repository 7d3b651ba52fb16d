// Apollo Client: pagination, persisted documents, token refresh, and live updates of the cache.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gql } from '@apollo/client';
import { live } from '../live.mjs';
import { Person, api } from '../person.mjs';
import { EVENTS, MOVE, TASKS, requests, statuses, titles, watch } from '../watch.mjs';
import { connect } from './client.mjs';

test('relayStylePagination merges pages into one list', async (t) => {
  const person = await Person.signUp();
  await person.tasks('one', 'two', 'three', 'four', 'five');
  const client = connect(api, person, live(api, person));
  const query = client.watchQuery({ query: gql(TASKS) });
  const { shown, until } = watch(t, query);
  await until(() => true);
  let { pageInfo } = shown[0].tasks;
  while (pageInfo.hasNextPage) {
    const page = await query.fetchMore({ variables: { after: pageInfo.endCursor } });
    ({ pageInfo } = page.data.tasks);
  }
  await until((data) => titles(data).length === 5);
  assert.deepEqual(titles(shown.at(-1)), ['one', 'two', 'three', 'four', 'five']);
  assert.equal(shown.at(-1).tasks.pageInfo.hasNextPage, false);
  // A different filter is a separate list.
  const other = await client.query({ query: gql(TASKS), variables: { filter: { search: 'our' } } });
  assert.deepEqual(titles(other.data), ['four']);
  assert.equal(titles(client.readQuery({ query: gql(TASKS) })).length, 5);
});

test('a document is sent once; afterwards only its hash is sent', async (t) => {
  const person = await Person.signUp();
  const seen = requests(t);
  // A unique operation name, because an earlier run may have registered the same document.
  const query = gql(`query N${Date.now()} { viewer { username } }`);
  for (let time = 0; time < 2; time += 1) {
    const { data } = await connect(api, person, live(api, person)).query({ query });
    assert.equal(data.viewer.username, person.username);
  }
  assert.deepEqual(
    seen.map(({ method, query, status }) => [method, query !== undefined, status]),
    [['GET', false, 400], ['POST', true, 200], ['GET', false, 200]],
  );
});

test('after a rejected token, the client refreshes it and retries the operation', async (t) => {
  const person = await Person.signUp();
  await person.tasks('one');
  const client = connect(api, person, live(api, person));
  const { refreshToken } = person;
  person.accessToken = 'no-longer-good';
  const seen = requests(t);
  const answers = await Promise.all([client.query({ query: gql(TASKS) }), client.query({ query: gql`{ viewer { username } }` })]);
  assert.deepEqual(titles(answers[0].data), ['one']);
  assert.equal(answers[1].data.viewer.username, person.username);
  assert.notEqual(person.refreshToken, refreshToken);
  assert.equal(seen.filter(({ status }) => status === 401).length, 2);
});

test('user errors are data, not GraphQL errors', async () => {
  const person = await Person.signUp();
  const [id] = await person.tasks('one');
  const { data, error } = await connect(api, person, live(api, person)).mutate({
    mutation: gql(MOVE),
    variables: { input: { id, status: 'DONE' } },
  });
  assert.equal(error, undefined);
  assert.equal(data.updateTask.task, null);
  assert.equal(data.updateTask.userErrors[0].code, 'INVALID_STATUS_TRANSITION');
});

test('an optimistic write is shown at once and rolled back when it is refused', async (t) => {
  const person = await Person.signUp();
  const [id] = await person.tasks('one');
  const client = connect(api, person, live(api, person));
  const { shown, until } = watch(t, client.watchQuery({ query: gql(TASKS) }));
  await until(() => true);
  for (const status of ['DONE', 'IN_PROGRESS']) {
    await client.mutate({
      mutation: gql(MOVE),
      variables: { input: { id, status } },
      optimisticResponse: {
        updateTask: { __typename: 'UpdateTaskPayload', task: { __typename: 'Task', id, status }, userErrors: [] },
      },
    });
  }
  assert.deepEqual(shown.map(statuses), [['TODO'], ['DONE'], ['TODO'], ['IN_PROGRESS']]);
});

test('live updates reach the cache and resume after a lost connection', async (t) => {
  const person = await Person.signUp();
  const [id] = await person.tasks('one');
  const socket = live(api, person);
  const client = connect(api, person, socket);
  const { until } = watch(t, client.watchQuery({ query: gql(TASKS) }));
  const events = client.subscribe({ query: gql(EVENTS), variables: { after: await person.newest() } });
  const { shown } = watch(t, events);
  await person.move(id, 'IN_PROGRESS');
  await until((data) => statuses(data)[0] === 'IN_PROGRESS');
  socket.terminate();
  await person.move(id, 'DONE');
  await until((data) => statuses(data)[0] === 'DONE');
  assert.deepEqual(shown.map(({ events }) => events.to), ['IN_PROGRESS', 'DONE']);
});

// Relay, with artifacts compiled from the schema: pagination, refetching, optimistic writes and
// live updates.
import './dom.mjs';
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { cleanup, fireEvent, render, screen, waitFor } from '@testing-library/react';
import { createElement, Suspense } from 'react';
import { RelayEnvironmentProvider } from 'react-relay';
import { live } from '../live.mjs';
import { Person, api } from '../person.mjs';
import board from './board.js';
import { connect } from './environment.mjs';

afterEach(cleanup);

async function open(...titles) {
  const person = await Person.signUp();
  const project = await person.project();
  const ids = [];
  for (const title of titles) ids.push(await person.task(title, project));
  const socket = live(api, person);
  const environment = connect(api, person, socket);
  const view = createElement(board.Board, { project, after: await person.newest() });
  const waiting = createElement(Suspense, { fallback: 'Loading' }, view);
  render(createElement(RelayEnvironmentProvider, { environment }, waiting));
  await screen.findByText(`${titles[0]}: TODO`);
  return { person, ids, socket };
}

const rows = () => screen.getAllByRole('listitem').map((row) => row.textContent);

test('usePaginationFragment loads one page after another', async () => {
  await open('one', 'two', 'three', 'four', 'five');
  assert.deepEqual(rows(), ['one: TODO', 'two: TODO']);
  fireEvent.click(screen.getByText('More'));
  await screen.findByText('four: TODO');
  fireEvent.click(screen.getByText('More'));
  await screen.findByText('five: TODO');
  assert.deepEqual(rows(), ['one: TODO', 'two: TODO', 'three: TODO', 'four: TODO', 'five: TODO']);
  assert.equal(screen.queryByText('More'), null);
});

test('a refetch loads the project by its node id', async () => {
  const { person, ids } = await open('one', 'two');
  await person.move(ids[1], 'IN_PROGRESS');
  fireEvent.click(screen.getByText('Begun'));
  await screen.findByText('two: IN_PROGRESS');
  await waitFor(() => assert.deepEqual(rows(), ['two: IN_PROGRESS']));
});

test('an optimistic write is shown at once', async () => {
  const { person, ids } = await open('one');
  fireEvent.click(screen.getByText('one: TODO'));
  assert.deepEqual(rows(), ['one: IN_PROGRESS']);
  const task = 'query ($id: ID!) { task(id: $id) { status } }';
  await waitFor(async () => assert.equal((await person.ask(task, { id: ids[0] })).task.status, 'IN_PROGRESS'));
  assert.deepEqual(rows(), ['one: IN_PROGRESS']);
});

test('live updates reach the store and resume after a lost connection', async () => {
  const { person, ids, socket } = await open('one');
  await person.move(ids[0], 'IN_PROGRESS');
  await screen.findByText('one: IN_PROGRESS');
  socket.terminate();
  await person.move(ids[0], 'DONE');
  await screen.findByText('one: DONE', undefined, { timeout: 10_000 });
});

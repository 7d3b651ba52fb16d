// Operations that every client is tested with, and helpers to observe the results.
import { EventEmitter, once } from 'node:events';

export const TASKS = `query Tasks($after: String, $filter: TaskFilter) {
  tasks(first: 2, after: $after, filter: $filter) {
    edges { cursor node { id title status project { id stats { taskCount } } } }
    pageInfo { hasNextPage endCursor }
  }
}`;
export const MOVE = `mutation Move($input: UpdateTaskInput!) {
  updateTask(input: $input) { task { id status } userErrors { field code message } }
}`;
export const EVENTS = `subscription Events($after: String) {
  events(after: $after) { id cursor ... on StatusChangedEvent { to task { id status } } }
}`;

export const titles = ({ tasks }) => tasks.edges.map(({ node }) => node.title);
export const statuses = ({ tasks }) => tasks.edges.map(({ node }) => node.status);

/** Collects the results of an observable query; `until` waits for one that matches. */
export function watch(t, results) {
  const shown = [];
  const arrived = new EventEmitter();
  const watching = results.subscribe(({ data, error }) => {
    if (error) arrived.emit('error', error);
    else if (data) arrived.emit('data', shown.push(data));
  });
  t.after(() => watching.unsubscribe());
  const until = async (holds) => {
    while (!shown.some(holds)) await once(arrived, 'data');
  };
  return { shown, until };
}

/** Records the requests to /graphql until the end of the test. */
export function requests(t) {
  const seen = [];
  const { fetch } = globalThis;
  t.after(() => (globalThis.fetch = fetch));
  globalThis.fetch = async (url, options = {}) => {
    const answer = await fetch(url, options);
    const { pathname, searchParams } = new URL(url);
    const asked = options.body ? JSON.parse(options.body) : Object.fromEntries(searchParams);
    const { method = 'GET' } = options;
    if (pathname === '/graphql') seen.push({ method, query: asked.query, status: answer.status });
    return answer;
  };
  return seen;
}

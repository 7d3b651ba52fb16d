import { createClient } from 'graphql-ws';
import { accessToken, onAccountChange, replace } from './session.js';

const URL = location.origin.replace(/^http/, 'ws') + '/graphql';
const UNAUTHORIZED = 4401;
const FORBIDDEN = 4403;
const MAX_WAIT = 15_000;

let client;
let sent;
const streams = new Set();

// A stream belongs to the account that opened it.
onAccountChange(() => {
  for (const end of streams) end();
  client = undefined;
});

/** A subscription as an observable. Unlike an async iterator, it can be ended while it waits. */
export const live = (request) => ({
  subscribe({ next, error, complete }) {
    let renewed = false;
    let release;

    const start = () => {
      client ??= connect();
      release = client.subscribe(request, { next, complete: end, error: fail });
    };
    const end = () => {
      if (!streams.delete(end)) return;
      release();
      complete();
    };
    const fail = async (reason) => {
      if (!renewed && isRefusal(reason)) {
        renewed = true;
        await renew();
        if (streams.has(end)) start();
      } else if (streams.delete(end)) {
        error(readable(reason));
      }
    };

    streams.add(end);
    start();
    return { unsubscribe: end };
  },
});

export const isUnauthenticated = (errors) =>
  errors.some((error) => error.extensions?.code === 'UNAUTHENTICATED');

const isRefusal = (reason) =>
  Array.isArray(reason) ? isUnauthenticated(reason) : reason.code === UNAUTHORIZED;

async function renew() {
  await replace(sent).catch(() => {});
  // Another stream may keep the socket open that was authenticated with the old token.
  client?.terminate();
}

function connect() {
  return createClient({
    url: URL,
    connectionParams: async () => {
      sent = await accessToken();
      return sent && { Authorization: `Bearer ${sent}` };
    },
    retryAttempts: Infinity,
    retryWait: (retries) =>
      new Promise((resolve) => {
        setTimeout(resolve, Math.min(1000 * 2 ** retries, MAX_WAIT) * (0.5 + Math.random() / 2));
      }),
    // A server restart appears as a plain error event, which is not retried by default.
    shouldRetry: () => true,
    on: {
      closed: ({ code }) => {
        if (code === FORBIDDEN) replace(sent).catch(() => {});
      },
    },
  });
}

function readable(reason) {
  if (Array.isArray(reason) || reason instanceof Error) return reason;
  return new Error(`The live connection was closed: ${reason.code} ${reason.reason}`);
}

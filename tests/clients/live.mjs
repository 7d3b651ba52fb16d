import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

/**
 * One socket for all subscriptions of a session. When it closes (network failure, server restart, expired token), it
 * reconnects with a valid token, and each subscription resumes after the last event it received. Documents must declare
 * `$after: String` and select `cursor`.
 */
export function live(api, session) {
  const sockets = createClient({
    url: `${api.replace(/^http/, 'ws')}/graphql`,
    webSocketImpl: WebSocket, // for Node.js before 22; browsers have their own
    connectionParams: async () => ({ Authorization: `Bearer ${await session.fresh()}` }),
    on: { closed: ({ code }) => code === 4403 && session.refused() },
    retryAttempts: Infinity,
    shouldRetry: () => true,
  });
  return {
    subscribe(request, sink) {
      // Sent again on reconnect, so `after` advances with each event.
      const variables = { ...request.variables };
      const next = (answer) => {
        variables.after = Object.values(answer.data ?? {})[0]?.cursor ?? variables.after;
        sink.next(answer);
      };
      return sockets.subscribe({ ...request, variables }, { ...sink, next });
    },
    terminate: () => sockets.terminate(),
  };
}

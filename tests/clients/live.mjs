import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

/**
 * One socket for all subscriptions of a session. Whatever closes it (the network, a restart, a token that has expired),
 * it is opened again with a good token, and each subscription goes on after the last event that it has seen: its
 * document declares `$after: String` and selects `cursor`.
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

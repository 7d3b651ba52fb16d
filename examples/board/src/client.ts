import { authExchange } from '@urql/exchange-auth';
import { cacheExchange } from '@urql/exchange-graphcache';
import { createClient } from 'graphql-ws';
import { Client, fetchExchange, subscriptionExchange } from 'urql';
import type { UpdateTaskInput } from './operations';
import schema from './schema.json';
import type { Session } from './session';

/** Creates the GraphQL client. Calls `onLive` when the socket opens or closes. */
export function connect(session: Session, onLive: (live: boolean) => void): Client {
  const sockets = createClient({
    url: `${location.origin.replace(/^http/, 'ws')}/graphql`,
    connectionParams: async () => {
      if (session.isStale) await session.refresh();
      return { Authorization: session.authorization };
    },
    on: {
      connected: () => onLive(true),
      closed: (event) => {
        onLive(false);
        if ((event as CloseEvent).code === 4403) session.refused();
      },
    },
    retryAttempts: Infinity,
    shouldRetry: () => true,
  });

  return new Client({
    url: '/graphql',
    exchanges: [
      cacheExchange({
        optimistic: {
          updateTask: (variables) => {
            const { expectedVersion: _, ...changes } = variables.input as UpdateTaskInput;
            return { __typename: 'UpdateTaskPayload', task: { __typename: 'Task', ...changes }, userErrors: [] };
          },
        },
        schema,
        keys: { UserError: () => null },
        updates: {
          Subscription: {
            // A task in an event has updated the cache already. Tasks that appear or disappear
            // change the list.
            events: ({ events }, _, cache) => {
              const { __typename: kind } = events as { __typename: string };
              if (['StatusChangedEvent', 'TaskUpdatedEvent'].includes(kind)) return;
              for (const { fieldName, arguments: args } of cache.inspectFields('Query')) {
                if (fieldName === 'tasks') cache.invalidate('Query', fieldName, args ?? undefined);
              }
            },
          },
        },
      }),
      authExchange(async ({ appendHeaders }) => ({
        addAuthToOperation: (operation) => appendHeaders(operation, { Authorization: session.authorization }),
        willAuthError: () => session.isStale,
        didAuthError: ({ graphQLErrors }) => graphQLErrors.some(({ extensions }) => extensions.code === 'UNAUTHENTICATED'),
        refreshAuth: () => session.refresh(),
      })),
      fetchExchange,
      subscriptionExchange({
        forwardSubscription: ({ query = '', variables }) => ({
          subscribe(sink) {
            // graphql-ws sends these variables again after a reconnect, so they follow the cursor.
            const resumed: Record<string, unknown> = { ...(variables as object) };
            const unsubscribe = sockets.subscribe<Record<string, { cursor?: string }>>(
              { query, variables: resumed },
              {
                next(answer) {
                  resumed.after = Object.values(answer.data ?? {})[0]?.cursor ?? resumed.after;
                  sink.next(answer as Parameters<typeof sink.next>[0]);
                },
                error: (error) => sink.error(error),
                complete: () => sink.complete(),
              },
            );
            return { unsubscribe };
          },
        }),
      }),
    ],
  });
}

import { Client, fetchExchange, subscriptionExchange } from '@urql/core';
import { authExchange } from '@urql/exchange-auth';
import { cacheExchange } from '@urql/exchange-graphcache';
import { relayPagination } from '@urql/exchange-graphcache/extras';

// Objects without an id are stored inside their parent.
const embedded = () => null;

export function connect(api, session, socket, schema) {
  return new Client({
    url: `${api}/graphql`,
    exchanges: [
      cacheExchange({
        keys: { FieldChange: embedded, ProjectStats: embedded, RateLimit: embedded, UserError: embedded, UserStats: embedded },
        schema, // lets the cache match fragments by type instead of heuristically
        resolvers: { Query: { tasks: relayPagination() } },
        optimistic: {
          updateTask: ({ input }) => ({
            __typename: 'UpdateTaskPayload',
            task: { __typename: 'Task', ...input },
            userErrors: [],
          }),
        },
      }),
      authExchange(async ({ appendHeaders }) => ({
        addAuthToOperation: (operation) => appendHeaders(operation, { Authorization: `Bearer ${session.accessToken}` }),
        didAuthError: ({ graphQLErrors }) => graphQLErrors.some(({ extensions }) => extensions.code === 'UNAUTHENTICATED'),
        refreshAuth: () => session.refresh(),
      })),
      fetchExchange,
      subscriptionExchange({
        forwardSubscription: (request) => ({
          subscribe: (sink) => ({ unsubscribe: socket.subscribe(request, sink) }),
        }),
      }),
    ],
  });
}

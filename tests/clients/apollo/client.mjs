import { createHash } from 'node:crypto';
import { ApolloClient, ApolloLink, CombinedGraphQLErrors, HttpLink, InMemoryCache } from '@apollo/client';
import { SetContextLink } from '@apollo/client/link/context';
import { ErrorLink } from '@apollo/client/link/error';
import { PersistedQueryLink } from '@apollo/client/link/persisted-queries';
import { GraphQLWsLink } from '@apollo/client/link/subscriptions';
import { relayStylePagination } from '@apollo/client/utilities';
import { OperationTypeNode } from 'graphql';
import { from, switchMap } from 'rxjs';

export function connect(api, session, socket) {
  const signed = new SetContextLink(({ headers }) => ({
    headers: { ...headers, authorization: `Bearer ${session.accessToken}` },
  }));
  const refreshed = new ErrorLink(({ error, operation, forward }) => {
    const expired = CombinedGraphQLErrors.is(error) && error.errors[0].extensions?.code === 'UNAUTHENTICATED';
    if (expired) return from(session.refresh()).pipe(switchMap(() => forward(operation)));
  });
  const hashed = new PersistedQueryLink({
    sha256: (document) => createHash('sha256').update(document).digest('hex'),
    useGETForHashedQueries: true,
  });
  const http = ApolloLink.from([refreshed, signed, hashed, new HttpLink({ uri: `${api}/graphql` })]);
  const streams = new GraphQLWsLink(socket);
  return new ApolloClient({
    link: ApolloLink.split(({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION, streams, http),
    cache: new InMemoryCache({
      typePolicies: { Query: { fields: { tasks: relayStylePagination(['filter', 'orderBy']) } } },
    }),
  });
}

import { getOperationAST, parse } from 'graphql';
import { send } from './http.js';
import { isUnauthenticated, live } from './live.js';
import { accessToken, getAccount, replace } from './session.js';

export function fetcher({ query, variables, operationName }, { headers } = {}) {
  const operation = chosenOperation(query, operationName);
  const request = {
    query,
    variables,
    operationName: operation ? operation.name?.value : operationName,
  };
  if (operation?.operation !== 'subscription') return execute(request, headers);
  if (getAccount()) return live(request);
  return { errors: [{ message: 'Sign in to use subscriptions.' }] };
}

// Right after a tab switch GraphiQL still passes the operation name of the previous tab.
function chosenOperation(query, name) {
  try {
    const document = parse(query);
    return getOperationAST(document, name) ?? getOperationAST(document);
  } catch {
    // The server reports what is wrong with the document.
    return undefined;
  }
}

async function execute(request, headers) {
  const token = await accessToken();
  const answer = await ask(request, token, headers);
  // An error outside GraphQL is a problem document, not a response with errors.
  const refused = isUnauthenticated(answer.errors ?? [{ extensions: answer }]);
  if (!token || !refused) return answer;
  const next = await replace(token);
  return next ? ask(request, next, headers) : answer;
}

async function ask(request, token, headers) {
  const response = await send('/graphql', request, token, {
    accept: 'application/graphql-response+json, application/json;q=0.9',
    ...headers,
  });
  try {
    return await response.json();
  } catch {
    throw new Error(`The server responded with status ${response.status} and no JSON.`);
  }
}

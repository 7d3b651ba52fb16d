import { Environment, Network, Observable } from 'relay-runtime';

export function connect(api, session, socket) {
  const ask = async ({ text }, variables) => {
    const answer = await fetch(`${api}/graphql`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${await session.fresh()}` },
      body: JSON.stringify({ query: text, variables }),
    });
    return answer.json();
  };
  const listen = ({ text }, variables) =>
    Observable.create((sink) => socket.subscribe({ query: text, variables }, sink));
  return new Environment({ network: Network.create(ask, listen) });
}

export class Problem extends Error {
  constructor(status, { code, detail, title } = {}) {
    super(detail ?? title ?? `The server responded with status ${status}.`);
    this.status = status;
    this.code = code;
  }
}

export function send(path, body, token, headers) {
  return fetch(path, {
    method: 'POST',
    headers: {
      ...(body && { 'content-type': 'application/json' }),
      ...(token && { authorization: `Bearer ${token}` }),
      ...headers,
    },
    body: body && JSON.stringify(body),
  });
}

export async function post(path, body, token) {
  const response = await send(path, body, token);
  const answer = await response.json().catch(() => undefined);
  if (!response.ok) throw new Problem(response.status, answer);
  return answer;
}

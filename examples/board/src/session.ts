interface Tokens {
  access_token: string;
  refresh_token: string;
  expires_in: number;
}

const KEY = 'board.session';

/** The tokens of a login. They survive a page reload, but not closing the tab. */
export class Session {
  /** Called when the session has ended. */
  onEnd = () => {};
  private refreshing?: Promise<void>;

  private constructor(
    private tokens: Tokens,
    private expiresAt: number,
  ) {}

  static stored(): Session | undefined {
    const text = sessionStorage.getItem(KEY);
    if (!text) return undefined;
    const { tokens, expiresAt } = JSON.parse(text) as { tokens: Tokens; expiresAt: number };
    return new Session(tokens, expiresAt);
  }

  static async logIn(username: string, password: string): Promise<Session> {
    const who = username.includes('@') ? { email: username } : { username };
    const answer = await post('/auth/login', { ...who, password });
    const session = new Session((await answer.json()) as Tokens, 0);
    session.keep(session.tokens);
    return session;
  }

  get authorization(): string {
    return `Bearer ${this.tokens.access_token}`;
  }

  /** Whether the access token is about to expire. */
  get isStale(): boolean {
    return Date.now() > this.expiresAt - 5000;
  }

  /** Marks the access token as expired because the server has refused it. */
  refused() {
    this.expiresAt = 0;
  }

  /** Refreshes the tokens. Concurrent calls share one request, because a refresh token works once. */
  refresh(): Promise<void> {
    this.refreshing ??= this.rotate().finally(() => (this.refreshing = undefined));
    return this.refreshing;
  }

  async logOut() {
    this.forget();
    await post('/auth/logout', undefined, this.authorization).catch(() => {});
  }

  private async rotate() {
    try {
      const answer = await post('/auth/refresh', { refresh_token: this.tokens.refresh_token });
      this.keep((await answer.json()) as Tokens);
    } catch (error) {
      if (error instanceof Refused && error.status === 401) this.forget();
      throw error;
    }
  }

  private keep(tokens: Tokens) {
    this.tokens = tokens;
    this.expiresAt = Date.now() + tokens.expires_in * 1000;
    sessionStorage.setItem(KEY, JSON.stringify({ tokens, expiresAt: this.expiresAt }));
  }

  private forget() {
    sessionStorage.removeItem(KEY);
    this.onEnd();
  }
}

class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function post(path: string, body?: object, authorization?: string): Promise<Response> {
  const answer = await fetch(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(authorization && { authorization }) },
    body: body && JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const problem = (await answer.json().catch(() => ({}))) as { detail?: string };
  throw new Refused(answer.status, problem.detail ?? `The server returned status ${answer.status}.`);
}

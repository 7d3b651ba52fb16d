/** The tokens of one login. Works with any client library. */
export class Session {
  constructor(api) {
    this.api = api;
  }

  /** Logs in with `{ username, password }` or `{ email, password }`. */
  async logIn(credentials) {
    this.#keep(await this.#post('/auth/login', credentials));
  }

  /** Ends the session on the server, including its sockets and streams. */
  async logOut() {
    await this.#post('/auth/logout', undefined, { authorization: `Bearer ${this.accessToken}` });
  }

  /** Returns an access token that is valid for at least five more seconds. */
  async fresh() {
    if (Date.now() > this.expiresAt - 5000) await this.refresh();
    return this.accessToken;
  }

  /** Call when the server has rejected the access token: the next `fresh()` refreshes it. */
  refused() {
    this.expiresAt = 0;
  }

  /** Refreshes the tokens. Concurrent calls share one request, because a refresh token can be used only once. */
  refresh() {
    this.refreshing ??= this.#post('/auth/refresh', { refresh_token: this.refreshToken })
      .then((tokens) => this.#keep(tokens))
      .finally(() => (this.refreshing = undefined));
    return this.refreshing;
  }

  #keep({ access_token, refresh_token, expires_in }) {
    this.accessToken = access_token;
    this.refreshToken = refresh_token;
    this.expiresAt = Date.now() + expires_in * 1000;
  }

  async #post(path, body, headers) {
    const answer = await fetch(this.api + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    });
    const text = await answer.text();
    const json = text ? JSON.parse(text) : undefined;
    if (!answer.ok) throw new Error(`${path}: ${json.code}: ${json.detail}`);
    return json;
  }
}

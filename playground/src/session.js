import { post } from './http.js';

const KEY = 'fasttrack.session';
const RETRY = 15_000;

let session = JSON.parse(sessionStorage.getItem(KEY));
let ended = false;
let refreshing;
let timer;
const listeners = new Set();

schedule();

/** The signed-in account: the same object until sign-out, however often the tokens change. */
export const getAccount = () => session?.account;

/** Whether the server ended the last session. */
export const sessionEnded = () => ended;

export function onAccountChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export async function signIn(name, password) {
  const account = { name };
  const who = name.includes('@') ? { email: name } : { username: name };
  keep(account, await post('/auth/login', { ...who, password }));
}

export async function register({ email, username, password, displayName }) {
  await post('/auth/register', {
    email,
    username,
    password,
    display_name: displayName || undefined,
  });
  await signIn(username, password);
}

export async function signOut() {
  try {
    await post('/auth/logout', undefined, await accessToken());
  } catch (error) {
    if (error.status !== 401) throw error;
  } finally {
    ended = false;
    store(undefined);
  }
}

/** A valid access token, or undefined if no user is signed in. */
export async function accessToken() {
  if (refreshing || (session && Date.now() >= session.expiresAt)) await refresh();
  return session?.accessToken;
}

/** Replaces a rejected token. Resolves to a new one, or undefined if the session has ended. */
export async function replace(token) {
  if (session && session.accessToken === token) await refresh();
  return session?.accessToken;
}

// Reusing a refresh token counts as theft and ends the session, so all callers share one request.
function refresh() {
  refreshing ??= rotate(session).finally(() => {
    refreshing = undefined;
  });
  return refreshing;
}

async function rotate(old) {
  try {
    const tokens = await post('/auth/refresh', { refresh_token: old.refreshToken });
    if (session === old) keep(old.account, tokens);
  } catch (error) {
    const over = error.status === 400 || error.status === 401 || error.status === 403;
    if (!over) throw error;
    if (session !== old) return;
    ended = true;
    store(undefined);
  }
}

function keep(account, { access_token, refresh_token, expires_in }) {
  const now = Date.now();
  ended = false;
  store({
    account,
    accessToken: access_token,
    refreshToken: refresh_token,
    refreshAt: now + expires_in * 750,
    // Slightly early, so that no token expires on its way to the server.
    expiresAt: now + expires_in * 950,
  });
}

function store(next) {
  const changed = next?.account !== session?.account;
  session = next;
  if (next) sessionStorage.setItem(KEY, JSON.stringify(next));
  else sessionStorage.removeItem(KEY);
  schedule();
  if (changed) for (const listener of listeners) listener();
}

function schedule(delay = session?.refreshAt - Date.now()) {
  clearTimeout(timer);
  if (session) timer = setTimeout(() => refresh().catch(() => schedule(RETRY)), delay);
}

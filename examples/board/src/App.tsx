import { type FormEvent, useEffect, useMemo, useState } from 'react';
import { Provider } from 'urql';
import { Board } from './Board';
import { connect } from './client';
import { Session } from './session';

export function App() {
  const [session, setSession] = useState(() => Session.stored());
  return session ? (
    <SignedIn session={session} onEnd={() => setSession(undefined)} />
  ) : (
    <SignIn onSession={setSession} />
  );
}

function SignedIn({ session, onEnd }: { session: Session; onEnd: () => void }) {
  const [live, setLive] = useState(false);
  const client = useMemo(() => connect(session, setLive), [session]);
  useEffect(() => {
    session.onEnd = onEnd;
  }, [session, onEnd]);
  return (
    <Provider value={client}>
      <Board live={live} onSignOut={() => session.logOut()} />
    </Provider>
  );
}

function SignIn({ onSession }: { onSession: (session: Session) => void }) {
  const [problem, setProblem] = useState<string>();
  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget);
    try {
      onSession(await Session.logIn(String(fields.get('username')), String(fields.get('password'))));
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <form className="sign-in" onSubmit={submit}>
      <h1>Board</h1>
      <label>
        Username or e-mail
        <input name="username" autoComplete="username" required autoFocus />
      </label>
      <label>
        Password
        <input name="password" type="password" autoComplete="current-password" required />
      </label>
      <button>Sign in</button>
      <p role="alert">{problem}</p>
    </form>
  );
}

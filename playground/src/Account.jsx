import { useState } from 'react';
import { register, sessionEnded, signIn, signOut } from './session.js';

export function Account({ account }) {
  const [creating, setCreating] = useState(false);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState();

  const attempt = async (action) => {
    setBusy(true);
    setProblem(undefined);
    try {
      await action();
      setCreating(false);
    } catch (error) {
      setProblem(error.message);
    } finally {
      setBusy(false);
    }
  };

  const submit = (event) => {
    event.preventDefault();
    const { name, password, ...fields } = Object.fromEntries(new FormData(event.currentTarget));
    attempt(() => (creating ? register({ ...fields, password }) : signIn(name, password)));
  };

  const switchMode = () => {
    setCreating(!creating);
    setProblem(undefined);
  };

  const notice = problem ?? (!account && sessionEnded() && 'Your session has ended. Sign in again.');

  return (
    <div className="account">
      {account ? (
        <div className="fields">
          <span>
            Signed in as <strong>{account.name}</strong>
          </span>
          <button type="button" disabled={busy} onClick={() => attempt(signOut)}>
            Sign out
          </button>
        </div>
      ) : (
        <form
          key={creating}
          className="fields"
          aria-label={creating ? 'Create account' : 'Sign in'}
          onSubmit={submit}
        >
          {creating ? <NewAccountFields /> : <SignInFields />}
          <button type="submit" className="primary" disabled={busy}>
            {creating ? 'Create account' : 'Sign in'}
          </button>
          <button type="button" className="link" disabled={busy} onClick={switchMode}>
            {creating ? 'I have an account' : 'Create account'}
          </button>
        </form>
      )}
      <p className="notice" role="alert">
        {notice}
      </p>
    </div>
  );
}

function SignInFields() {
  return (
    <>
      <Field label="E-mail or username" name="name" autoComplete="username" autoFocus />
      <Field label="Password" name="password" type="password" autoComplete="current-password" />
    </>
  );
}

function NewAccountFields() {
  return (
    <>
      <Field label="E-mail" name="email" type="email" autoComplete="email" autoFocus />
      <Field label="Username" name="username" autoComplete="username" />
      <Field label="Display name (optional)" name="displayName" autoComplete="name" required={false} />
      <Field label="Password" name="password" type="password" autoComplete="new-password" />
    </>
  );
}

function Field({ label, ...input }) {
  return (
    <label>
      <span>{label}</span>
      <input required autoCapitalize="none" spellCheck={false} {...input} />
    </label>
  );
}

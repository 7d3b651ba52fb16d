import { useEffect, useMemo, useSyncExternalStore } from 'react';
import { explorerPlugin } from '@graphiql/plugin-explorer';
import { useGraphiQL, useGraphiQLActions } from '@graphiql/react';
import { GraphiQL, HISTORY_PLUGIN } from 'graphiql';
import { Account } from './Account.jsx';
import { examples, examplesPlugin } from './examples.jsx';
import { fetcher } from './graphql.js';
import { getAccount, onAccountChange } from './session.js';
import icon from './icon.svg';

const plugins = [examplesPlugin, explorerPlugin({ showAttribution: false }), HISTORY_PLUGIN];
const firstTab = [{ query: examples[0].query }];

export function App() {
  const account = useSyncExternalStore(onAccountChange, getAccount);
  // A new function makes GraphiQL fetch the schema again.
  const accountFetcher = useMemo(() => (...args) => fetcher(...args), [account]);

  return (
    <>
      <header className="bar">
        <h1 className="brand">
          <img src={icon} alt="" width="24" height="24" />
          fasttrack
        </h1>
        <Account account={account} />
      </header>
      <main className="editor">
        <GraphiQL
          fetcher={accountFetcher}
          plugins={plugins}
          visiblePlugin={examplesPlugin}
          defaultTabs={firstTab}
          defaultEditorToolsVisibility="variables"
          showPersistHeadersSettings={false}
          inputValueDeprecation
          schemaDescription
        >
          <FollowSystemTheme />
        </GraphiQL>
      </main>
    </>
  );
}

// GraphiQL's editors read the system theme only once.
function FollowSystemTheme() {
  const { setTheme } = useGraphiQLActions();
  const theme = useGraphiQL((state) => state.theme);

  useEffect(() => {
    if (theme) return undefined;
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const follow = () => setTheme(null);
    dark.addEventListener('change', follow);
    return () => dark.removeEventListener('change', follow);
  }, [theme, setTheme]);

  return null;
}

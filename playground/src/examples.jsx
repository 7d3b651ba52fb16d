import { pick, useGraphiQL, useGraphiQLActions } from '@graphiql/react';

const files = import.meta.glob('../examples/*', { query: '?raw', import: 'default', eager: true });

/** Each document starts with a comment: the title in the first line, then a description. */
export const examples = Object.keys(files)
  .filter((path) => path.endsWith('.graphql'))
  .map((path) => {
    const query = files[path].trimEnd();
    const [, title, about] = /^# (.+)\n((?:#.*\n)*)/.exec(query);
    return {
      title,
      about: about.replaceAll(/^# /gm, ''),
      query,
      variables: (files[path.replace(/graphql$/, 'json')] ?? '').trimEnd(),
    };
  });

export const examplesPlugin = { title: 'Examples', icon: ExamplesIcon, content: Examples };

function Examples() {
  const { addTab, changeTab } = useGraphiQLActions();
  const { tabs, activeTabIndex, queryEditor, variableEditor } = useGraphiQL(
    pick('tabs', 'activeTabIndex', 'queryEditor', 'variableEditor'),
  );

  const ready = Boolean(queryEditor && variableEditor);

  const open = (example) => {
    const index = tabs.findIndex((tab) => tab.query === example.query);
    if (index === activeTabIndex) return;
    if (index >= 0) return changeTab(index);
    addTab();
    queryEditor.setValue(example.query);
    variableEditor.setValue(example.variables);
  };

  return (
    <section aria-label="Examples" className="examples">
      <h2>Examples</h2>
      <ol>
        {examples.map((example) => (
          <li key={example.title}>
            <button type="button" disabled={!ready} onClick={() => open(example)}>
              <strong>{example.title}</strong>
              <span>{example.about}</span>
            </button>
          </li>
        ))}
      </ol>
    </section>
  );
}

function ExamplesIcon(props) {
  return (
    <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" strokeWidth="1.5" {...props}>
      <path d="M4 5h16M4 12h10M4 19h7" strokeLinecap="round" />
      <path d="m16 15.5 5 3-5 3z" fill="currentColor" strokeLinejoin="round" />
    </svg>
  );
}

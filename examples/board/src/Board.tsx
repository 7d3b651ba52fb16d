import { useState } from 'react';
import { useMutation, useQuery, useSubscription } from 'urql';
import { type CardFragment, LiveDocument, MoveDocument, TasksDocument, type TaskStatus, ViewerDocument } from './operations';

const COLUMNS: [TaskStatus, string][] = [
  ['TODO', 'To do'],
  ['IN_PROGRESS', 'In progress'],
  ['DONE', 'Done'],
];

export function Board({ live, onSignOut }: { live: boolean; onSignOut: () => void }) {
  const [{ data, error, extensions }] = useQuery({ query: ViewerDocument, requestPolicy: 'network-only' });
  // The log position before the tasks are loaded, so that no event between both is missed.
  const cursor = (extensions as { sync: { cursor: string } } | undefined)?.sync.cursor;
  const [after, setAfter] = useState<string>();
  if (cursor && !after) setAfter(cursor);
  return (
    <>
      <header>
        <h1>Board</h1>
        <span className={live ? 'live' : 'waiting'}>{live ? 'live' : 'connecting'}</span>
        {data && <span className="who">{data.viewer.displayName}</span>}
        <button onClick={onSignOut}>Sign out</button>
      </header>
      {error && <p role="alert">{error.message}</p>}
      {after && <Columns after={after} />}
    </>
  );
}

function Columns({ after }: { after: string }) {
  const [{ data, error }] = useQuery({ query: TasksDocument });
  const [{ error: ended }] = useSubscription({ query: LiveDocument, variables: { after } });
  const [, move] = useMutation(MoveDocument);
  const [problem, setProblem] = useState<string>();

  const put = async ({ id, version }: CardFragment, status: TaskStatus) => {
    setProblem(undefined);
    const answer = await move({ input: { id, status, expectedVersion: version } });
    setProblem(answer.error?.message ?? answer.data?.updateTask.userErrors[0]?.message);
  };

  if (error) return <p role="alert">{error.message}</p>;
  if (!data) return <p className="hint">Loading …</p>;
  const { nodes, pageInfo } = data.tasks;
  return (
    <>
      <p role="alert">{ended ? `Reload the page: ${ended.message}` : problem}</p>
      <main>
        {COLUMNS.map(([status, title], place) => {
          const cards = nodes.filter((task) => task.status === status);
          return (
            <section key={status} aria-label={title}>
              <h2>
                {title} <span>{cards.length}</span>
              </h2>
              <ol>
                {cards.map((task) => (
                  // A new version gets a new key, which restarts the highlight animation.
                  <Card
                    key={`${task.id} ${task.version}`}
                    task={task}
                    back={COLUMNS[place - 1]}
                    forth={COLUMNS[place + 1]}
                    onMove={(to) => put(task, to)}
                  />
                ))}
              </ol>
            </section>
          );
        })}
      </main>
      {nodes.length === 0 && <p className="hint">You have no tasks yet.</p>}
      {pageInfo.hasNextPage && <p className="hint">Only the 100 most recently updated tasks are shown.</p>}
    </>
  );
}

interface CardProps {
  task: CardFragment;
  back?: [TaskStatus, string];
  forth?: [TaskStatus, string];
  onMove: (to: TaskStatus) => void;
}

function Card({ task, back, forth, onMove }: CardProps) {
  const due = task.dueAt && new Date(task.dueAt).toLocaleDateString(undefined, { day: 'numeric', month: 'short' });
  return (
    <li className={`card ${task.priority.toLowerCase()}`}>
      <small>{task.project.name}</small>
      <strong>{task.title}</strong>
      <footer>
        {task.assignee && <span className="assignee">{task.assignee.displayName}</span>}
        {due && <time className={task.isOverdue ? 'overdue' : ''}>{due}</time>}
        {task.viewerCanUpdate && (
          <span className="moves">
            {back && <Move arrow="←" to={back} onMove={onMove} />}
            {forth && <Move arrow="→" to={forth} onMove={onMove} />}
          </span>
        )}
      </footer>
    </li>
  );
}

function Move({ arrow, to: [status, title], onMove }: { arrow: string; to: [TaskStatus, string]; onMove: CardProps['onMove'] }) {
  return (
    <button aria-label={`Move to ${title}`} title={title} onClick={() => onMove(status)}>
      {arrow}
    </button>
  );
}

import { graphql, useLazyLoadQuery, useMutation, usePaginationFragment, useSubscription } from 'react-relay';

/** The tasks of a project, a page at a time, live. */
export function Board({ project, after }) {
  const data = useLazyLoadQuery(
    graphql`
      query boardQuery($project: ID!) {
        project(id: $project) { ...board_tasks }
      }
    `,
    { project },
  );
  useSubscription({
    subscription: graphql`
      subscription boardSubscription($project: ID!, $after: String) {
        statusChanged(projectId: $project, after: $after) { cursor task { id status } }
      }
    `,
    variables: { project, after },
  });
  return <Tasks project={data.project} />;
}

function Tasks({ project }) {
  const { data, hasNext, loadNext, refetch } = usePaginationFragment(
    graphql`
      fragment board_tasks on Project
      @refetchable(queryName: "boardTasksQuery")
      @argumentDefinitions(count: { type: "Int", defaultValue: 2 }, cursor: { type: "String" }, filter: { type: "TaskFilter" }) {
        tasks(first: $count, after: $cursor, filter: $filter) @connection(key: "board_tasks") {
          edges { node { id title status } }
        }
      }
    `,
    project,
  );
  const [move] = useMutation(graphql`
    mutation boardMoveMutation($input: UpdateTaskInput!) {
      updateTask(input: $input) { task { id status } userErrors { message } }
    }
  `);
  const start = ({ id }) =>
    move({
      variables: { input: { id, status: 'IN_PROGRESS' } },
      optimisticResponse: { updateTask: { task: { id, status: 'IN_PROGRESS' }, userErrors: [] } },
    });
  return (
    <>
      <ul>
        {data.tasks.edges.map(({ node }) => (
          <li key={node.id} onClick={() => start(node)}>{node.title}: {node.status}</li>
        ))}
      </ul>
      {hasNext && <button onClick={() => loadNext(2)}>More</button>}
      <button onClick={() => refetch({ filter: { status: ['IN_PROGRESS'] } })}>Begun</button>
    </>
  );
}

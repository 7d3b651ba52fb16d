// What a program may do with the generated types, and what the compiler must not let it do.
import type { TypedDocumentNode } from '@graphql-typed-document-node/core';
import { LiveEventsDocument, NestedReadDocument, TaskPagesDocument } from './generated/operations';
import type { Mutation, Task, TaskStatus as Status } from './generated/schema';

declare function ask<Data, Variables>(document: TypedDocumentNode<Data, Variables>, variables: Variables): Data;

export function summary(): string[] {
  const { projects } = ask(NestedReadDocument, {});
  // @ts-expect-error: a task may have no assignee
  projects.nodes[0]?.tasks.nodes[0]?.assignee.displayName;
  return projects.nodes.flatMap(({ tasks }) => tasks.nodes.map((task) => task.assignee?.displayName ?? 'nobody'));
}

export function nextPage(after: string): string | null {
  // @ts-expect-error: a cursor is text
  ask(TaskPagesDocument, { after: 1 });
  return ask(TaskPagesDocument, { after }).tasks.pageInfo.endCursor;
}

export function told(): string {
  const { events } = ask(LiveEventsDocument, {});
  // @ts-expect-error: not every event has a status
  events.to;
  return events.__typename === 'StatusChangedEvent' ? `${events.task.title}: ${events.from} to ${events.to}` : events.cursor;
}

export function moved({ updateTask }: Mutation): Status | undefined {
  const task: Task | null | undefined = updateTask.task;
  return task?.status;
}

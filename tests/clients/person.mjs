// A test user with a new account on a running server (FASTTRACK_URL).
import { randomUUID } from 'node:crypto';
import { Session } from './session.mjs';

export const api = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8000';
export const graphql = `${api}/graphql`;

export class Person extends Session {
  static PASSWORD = 'Correct-Horse-9';

  static async signUp(server = api) {
    const username = `p-${randomUUID().slice(0, 18)}`;
    const answer = await fetch(`${server}/auth/register`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ username, email: `${username}@example.org`, password: Person.PASSWORD }),
    });
    if (!answer.ok) throw new Error(`sign-up: ${answer.status} ${await answer.text()}`);
    return Person.of(server, username);
  }

  static async of(server, username) {
    const person = new Person(server);
    person.username = username;
    await person.logIn({ username, password: Person.PASSWORD });
    return person;
  }

  /** The same user with another session, as on another device. */
  elsewhere() {
    return Person.of(this.api, this.username);
  }

  get authorization() {
    return `Bearer ${this.accessToken}`;
  }

  async ask(query, variables) {
    const answer = await fetch(`${this.api}/graphql`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: this.authorization },
      body: JSON.stringify({ query, variables }),
    });
    const { data, errors } = await answer.json();
    if (errors) throw new Error(JSON.stringify(errors));
    return data;
  }

  async project() {
    const { createProject } = await this.ask(
      'mutation { createProject(input: { name: "Launch" }) { project { id } } }',
    );
    return createProject.project.id;
  }

  /** Creates a task in the project, or in a new one. Returns its id. */
  async task(title = 'Fuel', project) {
    const { createTask } = await this.ask(
      'mutation($project: ID!, $title: String!) { createTask(input: { projectId: $project, title: $title }) { task { id } } }',
      { project: project ?? (await this.project()), title },
    );
    return createTask.task.id;
  }

  /** Creates tasks with these titles in a new project. Returns their ids. */
  async tasks(...titles) {
    const project = await this.project();
    const ids = [];
    for (const title of titles) ids.push(await this.task(title, project));
    return ids;
  }

  /** The cursor of the newest event. */
  async newest() {
    const { events } = await this.ask('{ events(last: 1) { pageInfo { endCursor } } }');
    return events.pageInfo.endCursor;
  }

  move(task, status) {
    return this.ask(
      'mutation($task: ID!, $status: TaskStatus!) { updateTask(input: { id: $task, status: $status }) { userErrors { code } } }',
      { task, status },
    );
  }

  comment(task, body) {
    return this.ask(
      'mutation($task: ID!, $body: String!) { addComment(input: { taskId: $task, body: $body }) { userErrors { code } } }',
      { task, body },
    );
  }
}

/**
 * Adds comments, numbered from 0, until `first` settles: a stream without a cursor starts at an unknown moment. Returns
 * the number of comments.
 */
export async function commentUntil(first, person, task) {
  let came = false;
  const stop = () => (came = true);
  first.then(stop, stop);
  let written = 0;
  for (; !came; written += 1) await person.comment(task, `${written}`);
  return written;
}

export const comments = `subscription($after: String) {
  commentAdded(after: $after) { cursor comment { body } }
}`;

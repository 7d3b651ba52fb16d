// A person with an account of their own on a running server (FASTTRACK_URL), and a task to comment on.
import { randomUUID } from 'node:crypto';

export const base = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8000';
export const graphql = `${base}/graphql`;
const PASSWORD = 'Correct-Horse-9';

async function rest(path, body, token) {
  const headers = { 'content-type': 'application/json' };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(base + path, { method: 'POST', headers, body: JSON.stringify(body ?? {}) });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${text}`);
  return text ? JSON.parse(text) : undefined;
}

export class Person {
  static async signUp() {
    const username = `p-${randomUUID().slice(0, 18)}`;
    await rest('/auth/register', { username, email: `${username}@example.org`, password: PASSWORD });
    const person = new Person();
    person.username = username;
    await person.logIn();
    return person;
  }

  async logIn() {
    const tokens = await rest('/auth/login', { username: this.username, password: PASSWORD });
    this.token = tokens.access_token;
    this.refreshToken = tokens.refresh_token;
  }

  async refresh() {
    const tokens = await rest('/auth/refresh', { refresh_token: this.refreshToken });
    this.token = tokens.access_token;
    this.refreshToken = tokens.refresh_token;
  }

  logOut() {
    return rest('/auth/logout', {}, this.token);
  }

  get authorization() {
    return `Bearer ${this.token}`;
  }

  async ask(query, variables) {
    const answer = await fetch(graphql, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: this.authorization },
      body: JSON.stringify({ query, variables }),
    });
    const { data, errors } = await answer.json();
    if (errors) throw new Error(JSON.stringify(errors));
    return data;
  }

  async task() {
    const { createProject } = await this.ask(
      'mutation { createProject(input: { name: "Launch" }) { project { id } } }',
    );
    const { createTask } = await this.ask(
      'mutation($project: ID!) { createTask(input: { projectId: $project, title: "Fuel" }) { task { id } } }',
      { project: createProject.project.id },
    );
    return createTask.task.id;
  }

  comment(task, body) {
    return this.ask(
      'mutation($task: ID!, $body: String!) { addComment(input: { taskId: $task, body: $body }) { userErrors { code } } }',
      { task, body },
    );
  }
}

export const comments = `subscription($after: String) {
  commentAdded(after: $after) { cursor comment { body } }
}`;

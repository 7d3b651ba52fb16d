// The README shows of each client what is tested here.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

const root = new URL('../../', import.meta.url);

test('what the README shows of the clients stands in their files', async () => {
  const readme = await readFile(new URL('README.md', root), 'utf8');
  const clients = readme.split(/^## /m).find((section) => section.startsWith('Clients'));
  const shown = [...clients.matchAll(/\((tests\/clients\/[^)]+)\)\):\n\n```\w+\n(.*?)```/gs)];
  assert.equal(shown.length, clients.match(/^```\w+$/gm).length);
  for (const [, path, text] of shown) {
    assert.ok((await readFile(new URL(path, root), 'utf8')).includes(text), `${path} is not what the README shows`);
  }
});

// The GraphQL-over-HTTP audit suite. Every MUST and SHOULD has to pass; a MAY that does not is only
// reported.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { auditServer } from 'graphql-http';
import { graphql } from '../person.mjs';

test('the server conforms to GraphQL over HTTP', async (t) => {
  const results = await auditServer({ url: graphql });
  const broken = results.filter(({ status }) => status !== 'ok').map(({ id, name, reason }) => `${id} ${name}: ${reason}`);
  const required = broken.filter((line) => !/^\S+ MAY/.test(line));
  for (const line of broken) t.diagnostic(line);
  t.diagnostic(`${results.length} audits, ${results.length - broken.length} ok`);
  assert.ok(results.length > 50);
  assert.deepEqual(required, []);
});

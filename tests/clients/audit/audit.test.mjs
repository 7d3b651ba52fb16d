// The audits of GraphQL over HTTP. Every MUST and SHOULD has to be ok; a MAY that is not is only told.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { auditServer } from 'graphql-http';
import { graphql } from '../person.mjs';

test('GraphQL over HTTP is spoken as the specification has it', async (t) => {
  const results = await auditServer({ url: graphql });
  const broken = results.filter(({ status }) => status !== 'ok').map(({ id, name, reason }) => `${id} ${name}: ${reason}`);
  const required = broken.filter((line) => !/^\S+ MAY/.test(line));
  for (const line of broken) t.diagnostic(line);
  t.diagnostic(`${results.length} audits, ${results.length - broken.length} ok`);
  assert.ok(results.length > 50);
  assert.deepEqual(required, []);
});

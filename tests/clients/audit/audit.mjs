// Holds a running server against the audits of GraphQL over HTTP: `node audit.mjs http://127.0.0.1:8000/graphql`.
// Every MUST and SHOULD has to be ok; a MAY that is not is only told.
import { auditServer } from 'graphql-http';

const url = process.argv[2];
if (!url) {
  console.error('usage: node audit.mjs <url of /graphql>');
  process.exit(2);
}

const results = await auditServer({ url });
const count = { ok: 0, notice: 0, warn: 0, error: 0 };
let failed = 0;
for (const { id, name, status, reason } of results) {
  count[status] += 1;
  if (status === 'ok') continue;
  const required = !name.startsWith('MAY');
  failed += required ? 1 : 0;
  console.log(`${required ? 'FAILED' : 'note'} ${id} ${name}\n       ${reason}`);
}
console.log(`${results.length} audits: ${count.ok} ok, ${count.notice} notices, ${failed} required ones failed`);
process.exit(results.length > 0 && failed === 0 ? 0 : 1);

// Fails when schema.graphql has breaking changes. Run `node breaking.mjs` in any directory of a
// checkout with history.
//
// The base of the comparison is the merge base with origin/main, or with main if there is no such
// remote. On main itself, or if neither exists, it is the commit before the last change of the
// file. SCHEMA_BASE overrides it.
//
// An intended break is declared in a commit trailer since the base, with the description printed
// here:
//
//     Schema-break: Task.dueAt was removed.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildSchema, findBreakingChanges, findDangerousChanges } from 'graphql';

const FILE = 'schema.graphql';

const git = (...words) => {
  try {
    return execFileSync('git', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return null;
  }
};
const commit = (name) => git('rev-parse', '--verify', '--quiet', `${name}^{commit}`);

function base() {
  const head = commit('HEAD');
  if (process.env.SCHEMA_BASE) {
    return commit(process.env.SCHEMA_BASE) ?? fail(`SCHEMA_BASE: no commit ${process.env.SCHEMA_BASE}`);
  }
  const main = commit('refs/remotes/origin/main') ?? commit('refs/heads/main');
  const left = main && git('merge-base', 'HEAD', main);
  if (left && left !== head) return left;
  // First parents only, so that a merge into main counts as one change.
  const changed = git('log', '--first-parent', '-1', '--format=%H', '--', `:/${FILE}`);
  return changed && commit(`${changed}^`);
}

function fail(why) {
  console.error(why);
  process.exit(1);
}

const root = git('rev-parse', '--show-toplevel');
const from = root && base();
const before = from && git('show', `${from}:${FILE}`);
if (!before) {
  console.log(`No earlier ${FILE} in this checkout: nothing is compared.`);
  process.exit(0);
}
const schemas = [before, readFileSync(join(root, FILE), 'utf8')].map((sdl) => buildSchema(sdl));
const trailers = git('log', '--format=%(trailers:key=Schema-break,valueonly,unfold)', `${from}..HEAD`) ?? '';
const meant = new Set(trailers.split('\n').map((line) => line.trim()));

console.log(`${FILE}, compared with ${git('log', '-1', '--format=%h %s', from)}:`);
for (const { description } of findDangerousChanges(...schemas)) console.log(`careful: ${description}`);
const breaks = findBreakingChanges(...schemas).map(({ description }) => description);
const unmeant = breaks.filter((description) => !meant.has(description));
for (const description of breaks) console.log(`${meant.has(description) ? 'intended:' : 'BREAK:'} ${description}`);
if (unmeant.length > 0) {
  fail(
    'Deprecate it first (`#[graphql(deprecation = "…")]`), and remove it once it is unused. Declare an intended break in\n' +
      `commit trailers:\n\n${unmeant.map((line) => `Schema-break: ${line}`).join('\n')}`,
  );
}
console.log(breaks.length > 0 ? 'No unintended breaking changes.' : 'No breaking changes.');

// Fails when a change of schema.graphql takes something away that clients of main may use: `node breaking.mjs`, in any
// directory of a checkout with its history.
//
// What it is compared with: the place where this branch left origin/main, or main where there is no such remote. On main
// itself, and where neither is known: the commit before the last one that changed the file. SCHEMA_BASE names another.
//
// A break that is meant is named by a trailer of a commit since then, in the words that are printed here:
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
    return commit(process.env.SCHEMA_BASE) ?? fail(`SCHEMA_BASE: there is no commit ${process.env.SCHEMA_BASE}`);
  }
  const main = commit('refs/remotes/origin/main') ?? commit('refs/heads/main');
  const left = main && git('merge-base', 'HEAD', main);
  if (left && left !== head) return left;
  // By first parents: what a merge brought to main counts as one change.
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
  console.log(`There is no older ${FILE} in this checkout: nothing is compared.`);
  process.exit(0);
}
const schemas = [before, readFileSync(join(root, FILE), 'utf8')].map((sdl) => buildSchema(sdl));
const trailers = git('log', '--format=%(trailers:key=Schema-break,valueonly,unfold)', `${from}..HEAD`) ?? '';
const meant = new Set(trailers.split('\n').map((line) => line.trim()));

console.log(`${FILE}, compared with ${git('log', '-1', '--format=%h %s', from)}:`);
for (const { description } of findDangerousChanges(...schemas)) console.log(`careful: ${description}`);
const breaks = findBreakingChanges(...schemas).map(({ description }) => description);
const unmeant = breaks.filter((description) => !meant.has(description));
for (const description of breaks) console.log(`${meant.has(description) ? 'meant:' : 'BREAK:'} ${description}`);
if (unmeant.length > 0) {
  fail(
    'Deprecate it first (`#[graphql(deprecation = "…")]`), and remove it once nobody uses it. A break that is meant is\n' +
      `named by trailers of the commit:\n\n${unmeant.map((line) => `Schema-break: ${line}`).join('\n')}`,
  );
}
console.log(breaks.length > 0 ? 'Nothing breaks that is not meant to.' : 'Nothing breaks.');

// Runs breaking.mjs in temporary repositories.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const CHECK = fileURLToPath(new URL('breaking.mjs', import.meta.url));
const FIRST = 'type Query { a: Int b: Int }';

class Repository {
  constructor(t) {
    this.path = mkdtempSync(join(tmpdir(), 'schema-'));
    t.after(() => rmSync(this.path, { recursive: true }));
    this.git('init', '--quiet', '--initial-branch', 'main');
  }

  git(...words) {
    const who = ['-c', 'user.name=Test', '-c', 'user.email=test@example.org', '-c', 'commit.gpgsign=false'];
    return execFileSync('git', [...who, ...words], { cwd: this.path, encoding: 'utf8' }).trim();
  }

  write(sdl) {
    writeFileSync(join(this.path, 'schema.graphql'), sdl);
  }

  commit(sdl, ...words) {
    if (sdl) this.write(sdl);
    this.git('add', '.');
    this.git('commit', '--quiet', '--allow-empty', ...(words.length ? words : ['a change']).flatMap((it) => ['-m', it]));
    return this.git('rev-parse', 'HEAD');
  }

  check(env = {}) {
    const { SCHEMA_BASE, ...rest } = process.env;
    const { status, stdout, stderr } = spawnSync('node', [CHECK], {
      cwd: this.path,
      env: { ...rest, GIT_CEILING_DIRECTORIES: tmpdir(), ...env },
      encoding: 'utf8',
    });
    return { status, told: stdout + stderr };
  }
}

test('additions pass and removals fail, before and after they are committed', (t) => {
  const repository = new Repository(t);
  repository.commit(FIRST);
  assert.match(repository.check().told, /nothing is compared/);
  repository.git('checkout', '--quiet', '-b', 'branch');
  repository.commit('type Query { a: Int b: Int c: Int }');
  assert.deepEqual(repository.check().status, 0);
  repository.write('type Query { a: Int c: Int }');
  for (const step of ['written', 'committed']) {
    const { status, told } = repository.check();
    assert.equal(status, 1, step);
    assert.match(told, /BREAK: Query\.b was removed\./);
    repository.commit();
  }
});

test('a trailer permits exactly the break it names', (t) => {
  const repository = new Repository(t);
  repository.commit(FIRST);
  repository.git('checkout', '--quiet', '-b', 'branch');
  repository.commit('type Query { a: Int }', 'feat!: no b', 'Schema-break: Query.b was removed.');
  assert.equal(repository.check().status, 0);
  repository.commit('type Query { a: String }', 'feat: another a');
  const { status, told } = repository.check();
  assert.equal(status, 1);
  assert.match(told, /intended: Query\.b was removed\.\nBREAK: Query\.a changed type from Int to String\./);
});

test('on main, the last change of the schema is checked, even if it was a merge with later commits', (t) => {
  const repository = new Repository(t);
  repository.commit(FIRST);
  repository.git('checkout', '--quiet', '-b', 'branch');
  repository.commit('type Query { a: Int }');
  repository.commit('type Query { a: Int c: Int }');
  repository.git('checkout', '--quiet', 'main');
  repository.git('merge', '--quiet', '--no-ff', '-m', 'Merge branch', 'branch');
  repository.commit(null, 'something else');
  assert.match(repository.check().told, /BREAK: Query\.b was removed\./);
  // The same commit without any branch.
  repository.git('checkout', '--quiet', '--detach');
  repository.git('branch', '--quiet', '-D', 'main', 'branch');
  assert.match(repository.check().told, /BREAK: Query\.b was removed\./);
});

test('origin/main takes precedence over main, and SCHEMA_BASE over both', (t) => {
  const repository = new Repository(t);
  const first = repository.commit(FIRST);
  repository.git('update-ref', 'refs/remotes/origin/main', first);
  repository.commit('type Query { a: Int }');
  repository.commit('type Query { a: Int c: Int }');
  assert.match(repository.check().told, /BREAK: Query\.b was removed\./);
  assert.equal(repository.check({ SCHEMA_BASE: 'HEAD^' }).status, 0);
  assert.match(repository.check({ SCHEMA_BASE: 'nowhere' }).told, /no commit nowhere/);
});

test('dangerous changes are reported, and nothing is compared outside a repository', (t) => {
  const repository = new Repository(t);
  repository.commit('type Query { a: E } enum E { X }');
  repository.git('checkout', '--quiet', '-b', 'branch');
  repository.commit('type Query { a: E } enum E { X Y }');
  const { status, told } = repository.check();
  assert.equal(status, 0);
  assert.match(told, /careful: Y was added to enum type E\./);
  rmSync(join(repository.path, '.git'), { recursive: true });
  assert.match(repository.check().told, /nothing is compared/);
});

// Generates TypeScript types with graphql-codegen: for the schema and for GraphiQL's example
// operations.
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { codegen } from '@graphql-codegen/core';
import * as typedDocumentNode from '@graphql-codegen/typed-document-node';
import * as typescript from '@graphql-codegen/typescript';
import * as operations from '@graphql-codegen/typescript-operations';
import { parse } from 'graphql';

const root = new URL('../../../', import.meta.url);
const read = async (path) => parse(await readFile(new URL(path, root), 'utf8'));

const examples = (await readdir(new URL('playground/examples', root))).filter((name) => name.endsWith('.graphql'));
const documents = examples.map(async (name) => ({ location: name, document: await read(`playground/examples/${name}`) }));

const options = {
  schema: await read('schema.graphql'),
  documents: await Promise.all(documents),
  config: { scalars: { DateTime: 'string', JSON: 'unknown' }, useTypeImports: true },
};
const files = {
  'schema.ts': { typescript },
  'operations.ts': { operations, typedDocumentNode },
};
const generated = new URL('generated/', import.meta.url);
await mkdir(generated, { recursive: true });
for (const [filename, pluginMap] of Object.entries(files)) {
  const plugins = Object.keys(pluginMap).map((name) => ({ [name]: {} }));
  await writeFile(new URL(filename, generated), await codegen({ ...options, filename, plugins, pluginMap }));
}

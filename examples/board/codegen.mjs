// Generates TypeScript types for src/operations.graphql, and the schema for the cache.
import { readFileSync, writeFileSync } from 'node:fs';
import { codegen } from '@graphql-codegen/core';
import * as typedDocumentNode from '@graphql-codegen/typed-document-node';
import * as operations from '@graphql-codegen/typescript-operations';
import { minifyIntrospectionQuery } from '@urql/introspection';
import { buildASTSchema, introspectionFromSchema, parse } from 'graphql';

const file = (path) => new URL(path, import.meta.url);
const read = (path) => parse(readFileSync(file(path), 'utf8'));

const schema = read('../../schema.graphql');
const types = await codegen({
  filename: 'operations.ts',
  schema,
  documents: [{ document: read('src/operations.graphql') }],
  config: { scalars: { ID: 'string', DateTime: 'string', JSON: 'unknown' }, enumType: 'string-literal', useTypeImports: true },
  plugins: [{ operations: {} }, { typedDocumentNode: {} }],
  pluginMap: { operations, typedDocumentNode },
});
writeFileSync(file('src/operations.ts'), types);

const names = minifyIntrospectionQuery(introspectionFromSchema(buildASTSchema(schema)));
writeFileSync(file('src/schema.json'), JSON.stringify(names));

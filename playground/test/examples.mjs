// Every example and its variables must be valid against the schema.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { buildSchema, getVariableValues, parse, validate } from 'graphql';

const folder = new URL('../examples/', import.meta.url);
const schemaFile = process.env.SCHEMA ?? new URL('../../schema.graphql', import.meta.url);
const schema = buildSchema(readFileSync(schemaFile, 'utf8'));
const files = readdirSync(folder).filter((file) => file.endsWith('.graphql'));
let failed = false;

for (const file of files) {
  const document = parse(readFileSync(new URL(file, folder), 'utf8'));
  const variablesFile = new URL(file.replace(/graphql$/, 'json'), folder);
  const variables = existsSync(variablesFile) ? JSON.parse(readFileSync(variablesFile)) : {};

  const errors = [...validate(schema, document)];
  for (const { variableDefinitions } of document.definitions) {
    errors.push(...(getVariableValues(schema, variableDefinitions, variables).errors ?? []));
  }
  for (const { message } of errors) console.error(`${file}: ${message}`);
  failed ||= errors.length > 0;
}

if (failed) process.exit(1);
console.log(`${files.length} examples are valid.`);

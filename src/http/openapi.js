// Renders openapi.json: the input and output of each operation, with a form to try it. Supports
// only the parts of OpenAPI that the document uses.
const spec = await (await fetch("/docs/openapi.json")).json();
const at = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// Paragraphs of text with `code` spans.
function words(text = "") {
  const code = (part, index) => (index % 2 ? make("code", {}, part) : part);
  return text.split("\n\n").map((paragraph) => make("p", {}, ...paragraph.split("`").map(code)));
}

function table(titles, rows) {
  const row = (tag) => (cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, ...[cell].flat())));
  return make("table", {}, row("th")(titles), ...rows.map(row("td")));
}

function named(reference) {
  const name = reference.split("/").at(-1);
  return [name, spec.components.schemas[name]];
}

// A short description of the type of a value.
function kind(schema) {
  if (schema.$ref) {
    const [name] = named(schema.$ref);
    return [make("a", { href: `#${name}` }, name)];
  }
  if (schema.items) return ["list of ", ...kind(schema.items)];
  const limits = [
    schema.format,
    schema.enum?.join(" | "),
    schema.pattern,
    schema.minLength && `at least ${schema.minLength} characters`,
    schema.maxLength && `at most ${schema.maxLength} characters`,
  ];
  return [[[schema.type].flat().join(" or "), ...limits.filter(Boolean)].join(", ")];
}

function members(schema) {
  if (schema.$ref) return members(named(schema.$ref)[1]);
  if (schema.oneOf) return schema.oneOf.flatMap((one, index) => [...(index ? ["or"] : []), ...members(one)]);
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) => [
    make("code", {}, name),
    kind(property),
    schema.required?.includes(name) ? "required" : "",
    words(property.description),
  ]);
  return [table(["field", "type", "", "description"], rows)];
}

function example(schema) {
  if (schema.$ref) return example(named(schema.$ref)[1]);
  if (schema.oneOf) return example(schema.oneOf[0]);
  const required = Object.entries(schema.properties).filter(([name]) => schema.required.includes(name));
  return Object.fromEntries(required.map(([name, property]) => [name, property.example ?? ""]));
}

function form(method, path, operation, body) {
  const input = body && make("textarea", { rows: 6, value: JSON.stringify(example(body), null, 2), ariaLabel: "Body" });
  const output = make("pre", { hidden: true, role: "status" });
  const send = async () => {
    const headers = {};
    if (body) headers["content-type"] = "application/json";
    if (operation.security) headers.authorization = `Bearer ${at("token").value.trim()}`;
    const answer = await fetch(path, { method, headers, body: input?.value });
    const text = await answer.text();
    const json = text && JSON.parse(text);
    if (json.access_token) at("token").value = json.access_token;
    output.textContent = `${answer.status} ${answer.statusText}\n${text && JSON.stringify(json, null, 2)}`;
    output.hidden = false;
  };
  return [...(body ? [input] : []), make("button", { onclick: send }, "Send"), output];
}

function answers(responses) {
  const rows = Object.entries(responses).map(([status, { description, content = {} }]) => {
    const schema = Object.values(content)[0]?.schema;
    return [status, schema ? kind(schema.allOf?.[0] ?? schema) : "nothing", words(description)];
  });
  return table(["status", "body", "description"], rows);
}

at("title").textContent = spec.info.title;
at("about").replaceChildren(...words(spec.info.description));
at("main").replaceChildren();
for (const [path, item] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(item)) {
    const body = operation.requestBody?.content["application/json"].schema;
    const heading = `${method.toUpperCase()} ${path}`;
    const section = make("section", { id: operation.operationId }, make("h2", {}, heading));
    section.append(make("p", {}, make("strong", {}, operation.summary)), ...words(operation.description));
    if (body) section.append(...members(body));
    section.append(answers(operation.responses), ...form(method.toUpperCase(), path, operation, body));
    at("main").append(section);
    at("operations").append(make("a", { href: `#${operation.operationId}` }, operation.summary));
  }
}
for (const [name, schema] of Object.entries(spec.components.schemas)) {
  const section = make("section", { id: name }, make("h2", {}, name), ...words(schema.description));
  section.append(...members(schema));
  at("main").append(section);
}
// The target of the fragment did not exist when the page loaded.
at(location.hash.slice(1))?.scrollIntoView();

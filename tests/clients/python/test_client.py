"""gql: schema validation, pagination, errors, and a subscription that resumes after a lost
socket."""

import json
import logging
import os
import unittest
import uuid
from urllib.request import Request, urlopen

from gql import GraphQLRequest, gql
from gql.transport.exceptions import TransportError, TransportQueryError
from graphql import GraphQLError

from client import over_http, over_socket

API = os.environ.get("FASTTRACK_URL", "http://127.0.0.1:8000")
PASSWORD = "Correct-Horse-9"
# unittest turns on asyncio's debug mode, which logs every step that takes over 0.1 s.
logging.getLogger("asyncio").setLevel(logging.ERROR)

PAGE = """query ($after: String) {
  tasks(first: 2, after: $after) { nodes { title } pageInfo { hasNextPage endCursor } }
}"""
COMMENTS = """subscription ($after: String) {
  commentAdded(after: $after) { cursor comment { body } }
}"""


def post(path, body):
    request = Request(API + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


class Clients(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        username = f"p-{uuid.uuid4().hex[:16]}"
        post("/auth/register", {"username": username, "email": f"{username}@example.org", "password": PASSWORD})
        self.token = post("/auth/login", {"username": username, "password": PASSWORD})["access_token"]
        self.http = await self.enterAsyncContext(over_http(API, self.token))

    async def ask(self, document, **variables):
        return await self.http.execute(GraphQLRequest(document, variable_values=variables))

    async def project(self):
        made = await self.ask('mutation { createProject(input: { name: "Launch" }) { project { id } } }')
        return made["createProject"]["project"]["id"]

    async def task(self, project, title):
        create = "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }"
        made = await self.ask(create, input={"projectId": project, "title": title})
        return made["createTask"]["task"]["id"]

    async def comment(self, task, body):
        add = "mutation ($input: AddCommentInput!) { addComment(input: $input) { userErrors { code } } }"
        await self.ask(add, input={"taskId": task, "body": body})

    async def test_the_schema_is_read_and_documents_are_checked_against_it(self):
        self.assertIn("Task", self.http.client.schema.type_map)
        with self.assertRaises(GraphQLError):
            await self.ask("{ nothing }")

    async def test_a_list_is_read_page_by_page(self):
        project = await self.project()
        for title in ["one", "two", "three", "four", "five"]:
            await self.task(project, title)
        titles, page = [], {"hasNextPage": True, "endCursor": None}
        while page["hasNextPage"]:
            tasks = (await self.ask(PAGE, after=page["endCursor"]))["tasks"]
            titles += [node["title"] for node in tasks["nodes"]]
            page = tasks["pageInfo"]
        self.assertEqual(titles, ["one", "two", "three", "four", "five"])

    async def test_an_error_has_its_code(self):
        with self.assertRaises(TransportQueryError) as refused:
            await self.ask('{ tasks(after: "nonsense") { nodes { id } } }')
        self.assertEqual(refused.exception.errors[0]["extensions"]["code"], "BAD_USER_INPUT")

    async def test_a_token_that_is_not_good_is_refused(self):
        with self.assertRaises(TransportQueryError) as refused:
            await self.enterAsyncContext(over_http(API, "nonsense"))
        self.assertEqual(refused.exception.errors[0]["extensions"]["code"], "UNAUTHENTICATED")
        with self.assertRaises(TransportError):
            await self.enterAsyncContext(over_socket(API, "nonsense"))

    async def test_a_subscription_goes_on_where_its_socket_was_lost(self):
        task = await self.task(await self.project(), "Fuel")
        cursor = (await self.ask("{ events(last: 1) { pageInfo { endCursor } } }"))["events"]["pageInfo"]["endCursor"]
        for body in ["one", "two"]:
            await self.comment(task, body)
        told = []
        for _ in range(2):
            async with over_socket(API, self.token) as socket:
                async for answer in socket.subscribe(GraphQLRequest(COMMENTS, variable_values={"after": cursor})):
                    told.append(answer["commentAdded"]["comment"]["body"])
                    cursor = answer["commentAdded"]["cursor"]
                    break
        self.assertEqual(told, ["one", "two"])

    async def test_queries_run_on_a_socket_too(self):
        async with over_socket(API, self.token) as socket:
            self.assertEqual(await socket.execute(gql("{ __typename }")), {"__typename": "Query"})


if __name__ == "__main__":
    unittest.main()
